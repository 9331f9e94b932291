import { expect, test } from 'vitest'
import { formatOf, parsePrompts, toText } from '../src/prompts/parse'

const prompts = (text: string, format = formatOf(text)) => parsePrompts(text, format).rows.map(({ prompt }) => prompt)
const problems = (text: string, format = formatOf(text)) =>
  parsePrompts(text, format).problems.map(({ line, message }) => `${line}: ${message}`)

test('text has one prompt per line, comments and blank lines', () => {
  const list = parsePrompts('\ufeffa fox\r\n\r\n# a comment\r\n  an owl \n\\#1 dad\n', 'text')
  expect(list.rows).toEqual([{ prompt: 'a fox' }, { prompt: 'an owl' }, { prompt: '#1 dad' }])
  expect(list.lines).toEqual([1, 4, 5])
  expect(list.comments).toBe(1)
  expect(list.problems).toEqual([])
})

test('a prompt may contain a form feed and U+2028', () => {
  expect(prompts('a\u2028b\nc\fd')).toEqual(['a\u2028b', 'c\fd'])
})

test('the format follows from the name of a file, and from the first line of a text', () => {
  expect(formatOf('a fox', 'list.csv')).toBe('csv')
  expect(formatOf('a fox', 'list.TSV')).toBe('tsv')
  expect(formatOf('a fox', 'list.ndjson')).toBe('jsonl')
  expect(formatOf('prompt,seed\na fox,1')).toBe('csv')
  expect(formatOf('id\t"Prompt"\n1\ta fox')).toBe('tsv')
  expect(formatOf('prompt\na fox')).toBe('csv')
  expect(formatOf('\n{"prompt": "a fox"}')).toBe('jsonl')
  expect(formatOf('a fox, a prompt, an owl')).toBe('text')
  expect(formatOf('{red|green} fox')).toBe('text')
})

test('a table has the columns of the command line, in any order and case', () => {
  const text = 'ID,Seed,prompt,negative_prompt,images,width,height,steps,guidance_scale,Category\nf,7,a fox,grey,2,96,64,4,2.5,x\n'
  const list = parsePrompts(text, 'csv')
  expect(list.rows).toEqual([
    { prompt: 'a fox', negative_prompt: 'grey', seed: 7, id: 'f', images: 2, width: 96, height: 64, steps: 4, guidance_scale: 2.5 },
  ])
  expect(list.unused).toEqual(['Category'])
})

test('cells may hold commas, quotes and line ends; mistakes below them have the right line', () => {
  const text = 'prompt,seed\n"a fox, ""red""\nin snow",1\n,\nan owl,x\n'
  expect(parsePrompts(text, 'csv').rows[0]).toEqual({ prompt: 'a fox, "red"\nin snow', seed: 1 })
  expect(problems(text)).toEqual(["5: seed 'x' is not a number; correct it."])
})

test.each([
  ['prompt,seed\na fox,1\nan owl,-1', "3: seed '-1' is out of range: use a whole number of 0 or more."],
  ['prompt,seed\na fox,1.5', "2: seed '1.5' is out of range: use a whole number of 0 or more."],
  ['prompt,seed\na fox,9223372036854775807', '2: seed'],
  ['prompt,steps\na fox,0', "2: steps '0' is out of range: use a whole number of 1 or more."],
  ['prompt,guidance_scale\na fox,inf', "2: guidance_scale 'inf' is not a number; correct it."],
  ['prompt,seed\n,3', '2: the prompt is empty; give it some text, or delete the row.'],
  ['prompt,seed\na fox,1,2', '2: the row has more cells than the header (2); put cells that contain a comma in double quotes.'],
  ['seed,prompt\n1', '2: the row has 1 of 2 columns and lacks the prompt; correct that line.'],
  ['prompt,seed\n"a fox,1\nan owl,2', '2: damaged table (a quote is never closed); correct that line.'],
  ['prompt,seed\n"a" fox,1', '2: damaged table (text follows a closing quote); correct that line.'],
  ['prompt,prompt\na,b', "1: there are several columns 'prompt': keep one of them."],
  ['prompt,id\na,x\nb,X', "3: id 'X' is also that of line 2; change one of them."],
  ['prompt,id\na,x/y', "2: id 'x/y' cannot name a file: leave out '/'."],
  ['prompt,id\na,.x', "2: id '.x' cannot name a file: begin and end it with a letter or a digit."],
  ['prompt,image\na,x.png', '2: the page cannot use the column image: remove it, or use cotrunk generate.'],
])('%j is refused', (text, message) => {
  expect(problems(text)[0]).toContain(message)
})

test('a table without a column of prompts names its columns', () => {
  expect(problems('Text,Key\na,b', 'csv')).toEqual(["1: there is no column 'prompt': rename one of the columns ('Text', 'Key')."])
})

test('quotes in a tab-separated table are text unless a spreadsheet wrote them', () => {
  expect(prompts('prompt\tseed\n"quoted" text\t1\n12" record\t2', 'tsv')).toEqual(['"quoted" text', '12" record'])
  expect(prompts('prompt\tseed\n"a\tfox"\t1', 'tsv')).toEqual(['a\tfox'])
})

test('JSON lines are objects or texts', () => {
  const text = '{"prompt": "a fox", "seed": 7, "id": 3}\n\n"an owl"\n'
  const list = parsePrompts(text, 'jsonl')
  expect(list.rows[0]).toEqual({ prompt: 'a fox', seed: 7, id: '3' })
  expect(list.problems.map(({ line }) => line)).toEqual([3]) // it has no id, and the other has one
  expect(problems('{"prompt": 1}\n[1]\n{"text": "a"}\n{"prompt": "a", "seed": true}\n{')).toEqual([
    '1: the prompt is a number; it must be a string.',
    '2: the prompt is a list; it must be a string.',
    "3: there is no column 'prompt': rename one of the columns ('text').",
    '4: seed true is not a number; correct it.',
    '5: invalid JSON; correct that line.',
  ])
})

test('half a surrogate pair is refused', () => {
  expect(problems('{"prompt": "a \\ud83d fox"}')).toEqual(['1: the prompt contains an invalid surrogate; remove it.'])
  expect(prompts('a 🦊')).toEqual(['a 🦊'])
})

test.each([
  [[{ prompt: 'a fox' }, { prompt: '# 1' }]],
  [[{ prompt: 'prompt' }]],
  [[{ prompt: '{"a": 1}' }, { prompt: 'b' }]],
  [[{ prompt: 'two\nlines' }]],
  [[{ prompt: 'a fox', seed: 7 }, { prompt: 'an owl', negative_prompt: 'grey' }]],
])('%j is read again from its text', (rows) => {
  const text = toText(rows)
  expect(parsePrompts(text, formatOf(text)).rows).toEqual(rows)
})
