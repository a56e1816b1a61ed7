"""Source of an export: one `modeling_deconattn.py`, made from the package's own source.

transformers runs code that lies beside the weights from a copy, which it names by the content of the file and of what
that imports from beside it. So everything is in that one file, the configuration too: two exports with different code
never run each other's. It is cut from the package's text, of which there is no second copy:

- :mod:`.module` cuts a file into definitions with their comments, :mod:`.names` says which names they use.
- :mod:`.reach`: from the Hugging Face classes and the variants of the layers on, every definition that is used is
  carried; of a class, the methods that anything carried calls by name. So costs, cuts and other variants stay behind.
  What chooses the fastest kernel, with a backward pass of its own, is replaced by plain PyTorch
  (:mod:`deconattn.ops.plain`), which gives the same numbers, gradients by autograd, in linear memory.
- :mod:`.write` puts it together: imports at the top, a section for each module, names as they are, but where two
  modules have the same or a name is only clear with its module (`taylor_state.add`), the module's goes before it.
"""

from deconattn.hf.source.reach import AUTO_MAP
from deconattn.hf.source.write import FILE_NAME, modeling_source

__all__ = ["AUTO_MAP", "FILE_NAME", "modeling_source"]
