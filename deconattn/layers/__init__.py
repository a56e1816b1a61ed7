"""Parts of layers: the model's configuration, linear layers, rotary embedding, and how tensors are cut.

The one arithmetic of tensor parallelism is in :mod:`.splits` (what a module declares) and :mod:`.shards` (what a rank
holds of it).
"""
