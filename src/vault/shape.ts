import { idBytes } from './hash.ts';

/**
 * The shape of a hash tree. Level 0 are the data blocks; a node of level n holds the ids of
 * `fanout` neighbours of level n-1. The top is the only node of level `depth`: the smallest depth
 * whose single subtree covers the disk. A disk of one block is that block (depth 0).
 */
export interface TreeShape {
  readonly blockBytes: number;
  readonly fanout: number;
  readonly blocks: number;
  readonly depth: number;
}

export function treeShape(sizeBytes: number, blockBytes: number): TreeShape {
  const fanout = blockBytes / idBytes;
  const blocks = Math.ceil(sizeBytes / blockBytes);
  let depth = 0;
  for (let covered = 1; covered < blocks; covered *= fanout) depth++;
  return { blockBytes, fanout, blocks, depth };
}

/** Data blocks below one node of `level`. */
export function blocksBelow(fanout: number, level: number): number {
  return fanout ** level;
}
