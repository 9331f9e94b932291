"""Give prompts of a plan their own seeds and their own numbers of images."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from .plan import Findings, Plan
from .sharing import derived_seed
from .tree import Branch, leaf


def with_seeds(plan: Plan, seeds: Sequence[int | None]) -> Plan:
    """Return the plan with these seeds in place of those that it derived.

    A seed is that of the first image of its prompt, and the seeds of its other images are derived from it. With common
    noise, a group has the seed of one of its prompts that have one.

    Args:
        seeds: one per prompt; None for a prompt that keeps the seeds of the plan.
    """
    if all(seed is None for seed in seeds):
        return plan
    own, images = list(plan.seeds), plan.images_per_prompt
    given = [seeds[plan.prompt_of(image)] for image in range(len(plan))]
    for image, seed in enumerate(given):
        if seed is not None:
            own[image] = derived_seed(seed, image % images) if image % images else seed
    if plan.sharing is not None and plan.sharing.noise == "common":
        for tree in plan.trees:
            having = [image for image in tree.images if given[image] is not None]
            if having:
                # by text, so that the seed does not depend on the order of the prompts
                first = min(having, key=lambda image: (plan.prompts[plan.prompt_of(image)], own[image]))
                for image in tree.images:
                    own[image] = own[first]
    return replace(plan, seeds=tuple(own))


def with_other_seeds(plan: Plan, taken: Container[tuple[str, int]], fixed: Container[str] = ()) -> Plan:
    """Return the plan with other seeds in the trees of images that would repeat earlier ones.

    Args:
        taken: prompts of earlier images with their seeds.
        fixed: prompts whose seeds were asked for.
    """
    seeds = list(plan.seeds)
    for tree in plan.trees:
        prompts = [plan.prompts[plan.prompt_of(image)] for image in tree.images]
        while any((p, seeds[i]) in taken and p not in fixed for p, i in zip(prompts, tree.images, strict=True)):
            for image in tree.images:
                seeds[image] = derived_seed(seeds[image], "again")
    return replace(plan, seeds=tuple(seeds))


def with_copies(plan: Plan, copies: Sequence[int]) -> Plan:
    """Return the plan with only the first images of each prompt.

    The result has one image per prompt, so it holds a prompt once for each of its images.

    Args:
        copies: number of images of each prompt, 1 to `plan.images_per_prompt`.
    """
    most = plan.images_per_prompt
    if all(count == most for count in copies):
        return plan
    kept = [image for image in range(len(plan)) if image % most < copies[image // most]]
    place = {image: i for i, image in enumerate(kept)}
    trees = [found for tree in plan.trees if (found := _kept(tree, place, plan.timesteps)) is not None]
    return replace(
        plan,
        prompts=tuple(plan.prompts[plan.prompt_of(image)] for image in kept),
        seeds=tuple(plan.seeds[image] for image in kept),
        trees=tuple(sorted(trees, key=lambda tree: tree.images)),
        images_per_prompt=1,
        findings=_placed(plan.findings, {prompt: place[prompt * most] for prompt in range(len(copies))}),
    )


def _kept(branch: Branch, place: Mapping[int, int], timesteps: int) -> Branch | None:
    """Return a branch with only the images that have a place, under their new numbers."""
    images = tuple(sorted(place[image] for image in branch.images if image in place))
    if len(images) <= 1:
        return leaf(images[0], branch.start, timesteps) if images else None
    children = [kept for child in branch.children if (kept := _kept(child, place, timesteps)) is not None]
    if len(children) == 1:  # all images that are left go on together
        return replace(children[0], start=branch.start)
    children.sort(key=lambda child: child.images)
    return replace(branch, images=images, children=tuple(children))


def _placed(findings: Findings, place: Mapping[int, int]) -> Findings:
    return replace(
        findings,
        truncated=tuple((place[prompt], text) for prompt, text in findings.truncated),
        alike=tuple(tuple(place[prompt] for prompt in prompts) for prompts in findings.alike),
    )
