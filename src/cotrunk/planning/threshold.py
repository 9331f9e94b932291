"""Choose the similarity above which prompts share, for any encoder."""

import numpy as np

from .embedding import Encoder
from .grouping import cosine_similarities

# Pairs of related prompts: the same subject with different attributes, styles or settings. They should share early
# steps. Prompts of different pairs are unrelated. `auto_threshold` measures an encoder on both.
RELATED = (
    ("a red sports car on a mountain road", "a blue sports car on a mountain road"),
    ("a cat sleeping on a sofa", "a cat sitting on a windowsill"),
    ("an oil painting of a lighthouse by the sea", "a photo of a lighthouse at sunset"),
    ("a bowl of ramen with a soft-boiled egg", "a bowl of ramen, top view, studio light"),
    ("an astronaut riding a horse", "an astronaut on a horse, pencil sketch"),
    ("a portrait of an old fisherman", "a young fisherman, watercolor portrait"),
    ("a wooden chair in an empty room", "a metal chair in an office"),
    ("a medieval castle on a hill", "a ruined castle in the fog"),
    ("two children playing football in a park", "children playing football on a beach"),
    ("a bouquet of white roses in a vase", "a bouquet of red roses on a table"),
    ("a steam train crossing a bridge", "a steam train in the snow"),
    ("a cup of coffee on a newspaper", "a steaming cup of coffee, close-up"),
    ("a robot watering plants", "a rusty robot in a garden"),
    ("a brown dog running through water", "a black dog running on grass"),
    ("a woman reading a book in a library", "a woman reading a book under a tree, impressionism"),
    ("a hot-air balloon over green hills", "a hot-air balloon at dawn, engraving"),
    ("an elephant at a waterhole", "a baby elephant walking, pixel art"),
    ("a chocolate cake with candles", "a slice of chocolate cake on a plate"),
    ("a jazz band on a small stage", "a jazz band playing in the street, poster"),
    ("a snowy owl on a branch", "a snowy owl in flight"),
    ("a pair of running shoes on a white background", "worn running shoes on asphalt"),
    ("a skyscraper made of glass, low angle", "a glass skyscraper at night"),
    ("a wizard holding a glowing staff", "an old wizard casting a spell, comic style"),
    ("the planet Saturn seen from one of its moons", "the rings of Saturn, space telescope photo"),
)


def auto_threshold(encoder: Encoder) -> float:
    """Return a similarity threshold for an encoder, on its own scale.

    Cosines of different encoders cannot be compared: unrelated prompts may have 0.0 in one and 0.7 in another. So the
    encoder is measured on `RELATED`, 24 pairs of prompts with the same subject. The threshold is the larger of

    - the 25th percentile of the cosines of related prompts: three quarters of these pairs may share;
    - the largest cosine among the 1,104 pairs of unrelated prompts: none of these pairs may share.

    For a sentence encoder the first is larger. For an encoder that hardly separates subjects the second is larger, and
    little is shared. An affine change of all cosines changes the threshold in the same way, so anisotropic encoders
    need no special treatment. The result is rounded to three decimals and limited to [0, 0.99]. An encoder that reaches
    0.99 does not separate subjects at all.
    """
    cosines = cosine_similarities(encoder.encode([prompt for pair in RELATED for prompt in pair]))
    pair_of = np.arange(2 * len(RELATED)) // 2
    first, second = np.triu_indices(len(cosines), 1)
    related = pair_of[first] == pair_of[second]
    pairs = cosines[first, second]
    threshold = max(float(np.percentile(pairs[related], 25)), float(pairs[~related].max()))
    return round(min(max(threshold, 0.0), 0.99), 3)
