"""The field's mixers, one file each beside the paper's seven: `--variant NAME` finds `NAME.py` (`-` is `_` there).

A file is imported when its name is first asked for, and is a plugin in all but its place: nothing else names it. Its
docstring has the formula and the paper; the class has

- `principles`: what it keeps of standard attention;
- :meth:`~deconattn.mixers.Mixer.reference`: that formula by the plainest operations, with which `tests/mixers/
  test_zoo.py` compares the forward pass and all gradients in float64;
- a forward pass in linear memory, a decoding of its own, its splits, its costs, its map where there is one;
- parameters within 0.1 % of a layer of standard attention's at every `--size`, and how.
"""
