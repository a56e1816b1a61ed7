"""Evaluation: trained models on the paper's nine benchmarks, through EleutherAI's lm-evaluation-harness.

Prompts, metrics and standard errors are the harness's own. Here are the list of tasks (:mod:`.tasks`), where their
documents come from (:mod:`.datasets`, :mod:`.make_datasets`), the call into the harness (:mod:`.harness`), rows that
need no trained model (:mod:`.chance`), models with layers taken out (:mod:`.skip`), and what is told of it all
(:mod:`.results`, :mod:`.tables`). The command `evaluate` puts them together, and at a training's checkpoints
:mod:`.in_loop` does. The harness is imported only in the functions that need it.
"""
