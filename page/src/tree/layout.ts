// The drawing of a tree: one line per computed row, over the steps, as on the page of a run (drawing/tree_svg.py).

import { cluster, hierarchy, type HierarchyPointNode } from 'd3-hierarchy'

/** Images that share one row from timestep `start` up to, not including, `stop`. */
export interface Branch {
  images: number[]
  start: number
  stop: number
  children: Branch[]
}

export interface Line {
  kind: 'trunk' | 'branch'
  width: number
  path: string
}

export interface Drawing {
  /** The images from top to bottom, so that no two lines cross. */
  order: number[]
  lines: Line[]
  /** Where the tree branches, as timesteps. */
  branches: number[]
  /** The last timestep. */
  steps: number
}

export const END = 96 // where the last step lies in a drawing 100 wide; the rest leads to the images

/** Return where a step lies in a drawing 100 wide. */
export function place(step: number, steps: number): number {
  return (END * step) / Math.max(steps, 1)
}

/** Lay a tree out, 100 wide and one high per image. */
export function layout(tree: Branch): Drawing {
  const root = cluster<Branch>().nodeSize([1, 1]).separation(() => 1)(hierarchy(tree, childrenOf))
  const leaves = root.leaves().sort((a, b) => a.x - b.x)
  const top = (leaves[0]?.x ?? 0) - 0.5
  const steps = Math.max(...leaves.map((leaf) => leaf.data.stop))
  const lines: Line[] = []
  const branches = new Set<number>()
  const level = (node: HierarchyPointNode<Branch>) => round(node.x - top)

  const draw = (node: HierarchyPointNode<Branch>, origin: number) => {
    const { start, stop, images } = node.data
    const [from, to, y] = [round(place(start, steps)), round(place(stop, steps)), level(node)]
    for (const child of node.children ?? []) draw(child, y) // first, so that the trunk covers them
    // A branch leaves its trunk in a bend that begins exactly at the branch step.
    const bend = round(from + (origin === y ? 0 : Math.min(13, 0.7 * (to - from))))
    const end = node.children ? to : 100
    const curve = bend > from ? `C${round((from + bend) / 2)} ${origin} ${round((from + bend) / 2)} ${y} ${bend} ${y}` : ''
    const kind = images.length > 1 ? 'trunk' : 'branch'
    const last = start === stop && bend === from ? `C${END + 2} ${origin} ${END + 1} ${y} 100 ${y}` : `${curve}H${end}`
    lines.push({ kind, width: Math.min(3 * Math.sqrt(images.length) - 1, 16), path: `M${from} ${origin}${last}` })
    if (images.length > 1) {
      branches.add(stop)
      // A line of no length with round caps: a dot that stays round when stretched.
      lines.push({ kind, width: 9 + Math.sqrt(images.length), path: `M${to} ${y}h0.001` })
    }
  }
  draw(root, level(root))
  return {
    order: leaves.map((leaf) => leaf.data.images[0]!),
    lines,
    branches: [...branches].filter((step) => step < steps).sort((a, b) => a - b),
    steps,
  }
}

/** Return the branches below one; images that never branch separate after the last step. */
function childrenOf(branch: Branch): Branch[] | null {
  if (branch.children.length) return branch.children
  if (branch.images.length < 2) return null
  return branch.images.map((image) => ({ images: [image], start: branch.stop, stop: branch.stop, children: [] }))
}

function round(value: number): number {
  return Math.round(100 * value) / 100
}

/** Return the steps that have room for a label on the axis. */
export function ticks({ branches, steps }: Drawing, least = 9): number[] {
  const taken = [0, END]
  return branches.filter((step) => {
    const x = place(step, steps)
    const hasRoom = taken.every((other) => Math.abs(other - x) >= least)
    if (hasRoom) taken.push(x)
    return hasRoom
  })
}
