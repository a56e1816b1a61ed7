"""The mixing operations as blocks of PyTorch operations, each with a backward pass of its own: any device, any dtype.

Memory is linear in the length: a block of the map is made, used and forgotten, in both passes.
"""
