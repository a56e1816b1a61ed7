"""The command of each job. They are run as a user would: what one of them breaks, breaks one cell."""

from deconattn.program import process
from deconattn.reproduction.folder import ReproductionFolder, Stored
from deconattn.reproduction.outcomes import training_begun
from deconattn.reproduction.plans import PlannedJob, first_corpus, training_flags

TRAIN, EVALUATE, ANALYZE = process("train"), process("evaluate"), process("analyze")


def command_of(job: PlannedJob, folder: ReproductionFolder, stored: Stored, fresh: bool = False) -> list[str]:
    """Command line of a job, given what is on the disk: a training that has begun is resumed, unless `fresh`."""
    run, request = str(folder.run(job.run)), stored.request
    if job.kind == "train":
        if not fresh and training_begun(folder.run(job.run)):
            return [*TRAIN, "--save", run, "--resume"]
        return [*TRAIN, *training_flags(request, job.run), "--save", run]
    out = ["--out", str(folder.output(job))]
    if job.kind == "analyze":
        corpus = first_corpus(request)
        return [*ANALYZE, run, *([] if corpus is None else ["--data", corpus]), *out]
    command = [*EVALUATE, run, *out]
    if request.datasets is not None:
        command += ["--datasets", str(request.datasets)]
    if request.limit is not None:
        command += ["--limit", str(request.limit)]
    if job.kind == "contexts":
        longest = stored.estimates[job.run.name].length
        lengths = [str(length) for length in request.context_lengths if length <= longest]
        return [*command, "--tasks", "wikitext", "--context-lengths", ",".join(lengths or [str(longest)])]
    if request.tasks:
        command += ["--tasks", request.tasks]
    return [*command, "--skip-variant-layers"] if job.kind == "skip" else command
