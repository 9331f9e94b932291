// A list to try: prompts of the kind that the embedded models know, of which some are similar.

import type { PromptRow } from '../prompts/rows'

export const EXAMPLE: PromptRow[] = [
  'a red apple',
  'a green apple',
  'a yellow apple',
  'a red car',
  'a blue car',
  'a green car',
  'a smiling cat face',
  'a smiling dog face',
  'a sleepy cat face',
  'a house with a garden',
  'a mountain with snow',
  'a full moon',
].map((prompt) => ({ prompt }))
