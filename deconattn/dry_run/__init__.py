"""One rank of a job built and stepped without its machine: what it holds, what it sends, and what it would refuse.

The real model, topology, DeepSpeed engine and optimiser step, in a world of as many ranks as the job has, of which
only one is there: :mod:`.virtual_gpu` has its tensors without elements, its process group and its accelerator,
:mod:`.ledger` counts bytes held and sent, :mod:`.one_rank` takes the steps, :mod:`.ranks` chooses which ranks to try
and gives each a process, and :mod:`.report` prints them beside what :mod:`deconattn.cost` predicts.
"""
