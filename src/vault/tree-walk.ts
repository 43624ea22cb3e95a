import type { Extent } from '../lib/disk.ts';
import type { DiskRoot } from './api.ts';
import { idBytes, isZeroId, zeroId } from './hash.ts';
import { blocksBelow, treeShape } from './shape.ts';

export type ReadNode = (id: Buffer) => Promise<Buffer>;

/** A subtree: its id, and which data blocks it covers. */
interface Subtree {
  readonly id: Buffer;
  readonly level: number;
}

function topOf(root: DiskRoot): Subtree {
  return root.hash === ''
    ? { id: zeroId, level: 0 }
    : { id: Buffer.from(root.hash, 'hex'), level: root.depth };
}

/**
 * Where two disks differ, by walking both trees where their hashes do. The shorter disk counts as
 * ending in zeros. `zero`: the range is zeros in `b`. Neighbouring ranges are joined.
 */
export async function* difference(
  a: DiskRoot,
  b: DiskRoot,
  blockBytes: number,
  readNode: ReadNode,
): AsyncGenerator<Extent> {
  const walk = new DifferenceWalk(blockBytes, readNode);
  const level = Math.max(a.depth, b.depth);
  const end = Math.max(a.sizeBytes, b.sizeBytes);
  let pending: Extent | undefined;
  for await (const { block, blocks, zero } of walk.compare(topOf(a), topOf(b), level, 0)) {
    const offset = block * blockBytes;
    const length = Math.min(blocks * blockBytes, end - offset);
    if (length <= 0) continue;
    if (
      pending !== undefined &&
      pending.offset + pending.length === offset &&
      pending.zero === zero
    )
      pending = { ...pending, length: pending.length + length };
    else {
      if (pending !== undefined) yield pending;
      pending = { offset, length, zero };
    }
  }
  if (pending !== undefined) yield pending;
}

interface BlockRange {
  readonly block: number;
  readonly blocks: number;
  readonly zero: boolean;
}

class DifferenceWalk {
  readonly #fanout: number;
  readonly #blockBytes: number;
  readonly #readNode: ReadNode;

  constructor(blockBytes: number, readNode: ReadNode) {
    this.#blockBytes = blockBytes;
    this.#fanout = blockBytes / idBytes;
    this.#readNode = readNode;
  }

  /** Both subtrees stand for the blocks from `first` on that a subtree of `level` covers. */
  async *compare(a: Subtree, b: Subtree, level: number, first: number): AsyncGenerator<BlockRange> {
    if (a.level === b.level && a.id.equals(b.id)) return;
    if (isZeroId(a.id) && isZeroId(b.id)) return;
    if (level === 0) {
      yield { block: first, blocks: 1, zero: isZeroId(b.id) };
      return;
    }
    const span = blocksBelow(this.#fanout, level - 1);
    const ofA = await this.#children(a, level);
    const ofB = await this.#children(b, level);
    for (let child = 0; child < this.#fanout; child++) {
      const [one, other] = [ofA(child), ofB(child)];
      if (one === undefined && other === undefined) continue;
      const zero = { id: zeroId, level: 0 };
      yield* this.compare(one ?? zero, other ?? zero, level - 1, first + child * span);
    }
  }

  /** A lower tree stands where it would be the first child; undefined: zeros. */
  async #children(tree: Subtree, level: number): Promise<(child: number) => Subtree | undefined> {
    if (isZeroId(tree.id)) return () => undefined;
    if (tree.level < level) return (child) => (child === 0 ? tree : undefined);
    const node = Buffer.alloc(this.#blockBytes);
    (await this.#readNode(tree.id)).copy(node);
    return (child) => {
      const id = node.subarray(child * idBytes, (child + 1) * idBytes);
      return isZeroId(id) ? undefined : { id, level: level - 1 };
    };
  }
}

/** Data blocks of a disk that are not zero; reads its nodes, not its data. */
export async function countBlocks(
  root: DiskRoot,
  blockBytes: number,
  readNode: ReadNode,
): Promise<number> {
  const { fanout } = treeShape(root.sizeBytes, blockBytes);
  const count = async (id: Buffer, level: number): Promise<number> => {
    if (isZeroId(id)) return 0;
    if (level === 0) return 1;
    const node = Buffer.from(await readNode(id));
    let sum = 0;
    for (let child = 0; child < fanout; child++)
      sum += await count(node.subarray(child * idBytes, (child + 1) * idBytes), level - 1);
    return sum;
  };
  const top = topOf(root);
  return count(top.id, top.level);
}
