"""The folder of a run that was never run: a plan, its job, and batches with given numbers."""

from types import SimpleNamespace

from PIL import Image

from cotrunk.execution import Batch
from cotrunk.planning.plan import Cost, Plan
from cotrunk.planning.tree import Branch, leaf
from cotrunk.runs.arm import main_arms
from cotrunk.runs.facts import PipelineFacts
from cotrunk.runs.folder import RunFolder
from cotrunk.runs.job import Job
from cotrunk.runs.job_plan import job_plan
from cotrunk.settings import Settings, Sharing

PLAN = Plan(
    prompts=("a [red] äpple", "a green apple", "a tiger"),
    seeds=(7, 7, 8),
    trees=(Branch((0, 1), 0, 1, 0.8, (leaf(0, 1, 3), leaf(1, 1, 3))), leaf(2, 0, 3)),
    steps=3,
    timesteps=3,
    sharing=Sharing.published(share=0.4),
    threshold=0.5,
)


FACTS = PipelineFacts("DDIMScheduler", "cpu", "float32")


JOB = Job(PLAN.prompts, Settings(steps=3), guidance_scale=7.5)


JOB_PLAN = job_plan(JOB, [(range(3), PLAN)])


ARM = main_arms(JOB_PLAN)[0]


def batch(*images: int, failed: tuple[int, ...] = (), flagged: tuple[int, ...] = (), rows: int = 10) -> Batch:
    made = [Image.new("RGB", (8, 8), (image, 0, 0)) for image in images]
    seconds = {"embed": 1.0, "denoise": 2.0, "decode": 3.0}
    return Batch(
        images=images,
        output=SimpleNamespace(images=made),
        failed=failed,
        flagged=flagged,
        cost=Cost(rows, 6 * len(images)),
        spared={"sharing": 6 * len(images) - rows, "guidance": 0, "skipping": 0},
        steps=("CPC",) * len(images),
        rows=(rows / len(images),) * len(images),
        seconds=seconds,
    )


def write(folder: RunFolder, *batches: Batch) -> None:
    for one in batches:
        folder.write_batch(ARM, one, JOB, FACTS)
