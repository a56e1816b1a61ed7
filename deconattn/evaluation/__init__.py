"""Evaluation: trained models on the paper's nine benchmarks or others, through EleutherAI's lm-evaluation-harness, and
on long text.

Prompts, metrics and standard errors are the harness's own. Here are the list of the nine (:mod:`.tasks`), any task
found and loaded (:mod:`.selection`), where the nine's documents come from (:mod:`.datasets`, :mod:`.make_datasets`),
the call into the harness (:mod:`.harness`), texts made harder and what that changes (:mod:`.perturbations`,
:mod:`.robustness`), rows that need no trained model (:mod:`.chance`), and what is told of it all (:mod:`.results`,
:mod:`.tables`). Our own tasks about long text (:mod:`.long_text`) need no harness: perplexity by position
(:mod:`.position`), a needle in a haystack (:mod:`.needle`), any model's logits (:mod:`.logits`), and their pictures
(:mod:`.pictures`). The command `evaluate` puts them together, and at a training's checkpoints :mod:`.in_loop` does. The
harness is imported only in the functions that need it.
"""
