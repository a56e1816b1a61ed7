"""Hugging Face: the classes that an export carries, their registration, and the export itself.

:mod:`deconattn.hf.register` makes the auto classes know ours once `deconattn` is imported;
:func:`deconattn.hf.export.export` writes a folder that `AutoModelForCausalLM.from_pretrained` reads, with
`deconattn` installed or without. Nothing is imported here, so that `import deconattn` stays cheap.
"""
