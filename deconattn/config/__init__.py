"""Configuration of a run: dataclasses (:mod:`.flags`) from which the command line, its help and `config.json` are made.

:mod:`.presets` has their defaults by size, :mod:`.pattern` the layer patterns; :mod:`.command_line` and
:mod:`.flag_file` read them, :mod:`.deepspeed` makes DeepSpeed's dictionary, :mod:`.flag_table` the table in docs.
"""
