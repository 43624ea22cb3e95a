import type { DiskRoot } from './api.ts';
import { vaultLimits } from '../limits.ts';
import { idBytes, isZeroId, zeroId } from './hash.ts';
import { blocksBelow, treeShape, type TreeShape } from './shape.ts';

/** Where a tree's nodes come from and go to. Nodes are blocks; `store` may wait for room. */
export interface TreeStore {
  read(id: Buffer): Promise<Buffer>;
  store(node: Buffer): Promise<Buffer>;
}

/** A node being changed: ids of children, and which of them were set here. */
interface DirtyNode {
  readonly ids: Buffer;
  readonly touched: Uint8Array;
}

/**
 * Builds a disk's tree by changing another one (or the empty one): only touched nodes and the path
 * above them are written, so the cost follows the change. `set` is synchronous and takes ids of
 * data blocks in any order; `settle` bounds the memory and should follow every few of them.
 *
 * Levels are as in shape.ts. A child set at level n lives in the dirty node of level n+1; the top
 * has `#root` as its parent. Flushing runs alone (`#busy`), from low levels to high.
 */
export class TreeWriter {
  readonly shape: TreeShape;
  readonly #store: TreeStore;
  /** By level; index 0 stays empty. */
  readonly #dirty: Map<number, DirtyNode>[];
  #root: Buffer | undefined;
  #busy: Promise<void>;
  /** Blocks that are not zero; undefined: not known without walking the tree. */
  #referenced: number | undefined;

  constructor(
    store: TreeStore,
    sizeBytes: number,
    blockBytes: number,
    base?: { root: DiskRoot; referencedBlocks: number | undefined },
  ) {
    this.#store = store;
    this.shape = treeShape(sizeBytes, blockBytes);
    this.#dirty = Array.from({ length: this.shape.depth + 1 }, () => new Map());
    this.#referenced = base === undefined ? 0 : base.referencedBlocks;
    this.#busy = base === undefined ? Promise.resolve() : this.#startFrom(base.root);
    this.#busy.catch(() => undefined);
  }

  get referencedBlocks(): number | undefined {
    return this.#referenced;
  }

  /** Puts the base under a top of our depth: higher trees wrap it, lower ones take its first part. */
  async #startFrom(base: DiskRoot): Promise<void> {
    let id: Buffer = base.hash === '' ? zeroId : Buffer.from(base.hash, 'hex');
    let level = base.depth;
    for (; level < this.shape.depth && !isZeroId(id); level++) {
      const node = Buffer.alloc(this.shape.blockBytes);
      node.set(id, 0);
      id = await this.#store.store(node);
    }
    for (; level > this.shape.depth && !isZeroId(id); level--)
      id = Buffer.from((await this.#store.read(id)).subarray(0, idBytes));
    this.#root ??= id; // A disk of one block may have been set before the base was read.
    const covered = blocksBelow(this.shape.fanout, this.shape.depth);
    const baseBlocks = Math.ceil(base.sizeBytes / this.shape.blockBytes);
    if (baseBlocks > this.shape.blocks) this.#referenced = undefined;
    if (baseBlocks > this.shape.blocks && covered > this.shape.blocks)
      await this.#clear(this.shape.blocks, covered);
  }

  /** The data block's new id; `zeroId`: zeros. */
  set(block: number, id: Buffer): void {
    this.#setChild(0, block, id);
  }

  #setChild(level: number, number: number, id: Buffer): void {
    if (level === this.shape.depth) {
      if (level === 0) this.#referenced = isZeroId(id) ? 0 : 1;
      this.#root = id;
      return;
    }
    const { fanout, blockBytes } = this.shape;
    const parents = this.#dirty[level + 1] as Map<number, DirtyNode>;
    const parent = Math.floor(number / fanout);
    let node = parents.get(parent);
    if (node === undefined) {
      node = { ids: Buffer.alloc(blockBytes), touched: new Uint8Array(fanout) };
      parents.set(parent, node);
    }
    const child = number % fanout;
    node.ids.set(id, child * idBytes);
    node.touched[child] = 1;
  }

  /** True when `settle` has something to do. */
  get isCrowded(): boolean {
    return this.#dirty.some((nodes) => nodes.size > vaultLimits.treeNodesDirtyMax);
  }

  /** Writes the nodes that were touched longest ago, until their number is within its bound. */
  settle(): Promise<void> {
    if (!this.isCrowded) return Promise.resolve();
    return this.#alone(() => this.#flush(vaultLimits.treeNodesDirtyMax));
  }

  /** Zeros for whole blocks [from, to): subtree by subtree, not block by block. */
  zero(from: number, to: number): Promise<void> {
    return this.#alone(() => this.#clear(from, to));
  }

  #alone<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#busy.then(work);
    this.#busy = turn.then(() => undefined);
    this.#busy.catch(() => undefined);
    return turn;
  }

  async #clear(from: number, to: number): Promise<void> {
    const { fanout, depth } = this.shape;
    let at = from;
    while (at < to) {
      let level = 0;
      while (level < depth && at % fanout ** (level + 1) === 0 && at + fanout ** (level + 1) <= to)
        level++;
      if (level > 0) await this.#clearSubtree(level, at / fanout ** level);
      else this.#setChild(0, at, zeroId);
      at += fanout ** level;
      if (this.isCrowded) await this.#flush(vaultLimits.treeNodesDirtyMax);
    }
  }

  async #clearSubtree(level: number, number: number): Promise<void> {
    for (let below = 1; below <= level; below++) {
      const span = this.shape.fanout ** (level - below);
      const nodes = this.#dirty[below] as Map<number, DirtyNode>;
      for (const node of nodes.keys()) if (Math.floor(node / span) === number) nodes.delete(node);
    }
    const old = await this.#currentId(level, number);
    if (isZeroId(old)) return;
    this.#referenced = undefined;
    this.#setChild(level, number, zeroId);
  }

  async #flush(keptMax: number): Promise<void> {
    for (let level = 1; level <= this.shape.depth; level++) {
      const nodes = this.#dirty[level] as Map<number, DirtyNode>;
      for (const [number, node] of nodes) {
        if (nodes.size <= keptMax) break;
        nodes.delete(number);
        await this.#flushNode(level, number, node);
      }
    }
  }

  /** What was not touched comes from the node as it was; a node of zeros becomes a hole. */
  async #flushNode(level: number, number: number, node: DirtyNode): Promise<void> {
    const { ids, touched } = node;
    const oldId = await this.#currentId(level, number);
    const old = isZeroId(oldId) ? undefined : await this.#store.read(oldId);
    if (level === 1) this.#count(node, old);
    if (old !== undefined)
      for (let child = 0; child < touched.length; child++)
        if (touched[child] === 0) old.copy(ids, child * idBytes, child * idBytes, (child + 1) * 32);
    const isHole = ids.equals(Buffer.alloc(ids.length));
    this.#setChild(level, number, isHole ? zeroId : await this.#store.store(ids));
  }

  #count({ ids, touched }: DirtyNode, old: Buffer | undefined): void {
    if (this.#referenced === undefined) return;
    for (let child = 0; child < touched.length; child++) {
      if (touched[child] === 0) continue;
      const at = child * idBytes;
      if (!isZeroId(ids.subarray(at, at + idBytes))) this.#referenced++;
      if (old !== undefined && !isZeroId(old.subarray(at, at + idBytes))) this.#referenced--;
    }
  }

  /** The id of a subtree as last set or flushed; the node itself may be dirty again. */
  async #currentId(level: number, number: number): Promise<Buffer> {
    if (level === this.shape.depth) return this.#root ?? zeroId;
    const { fanout } = this.shape;
    const parent = Math.floor(number / fanout);
    const at = (number % fanout) * idBytes;
    const dirty = (this.#dirty[level + 1] as Map<number, DirtyNode>).get(parent);
    if (dirty !== undefined && dirty.touched[number % fanout] === 1)
      return Buffer.from(dirty.ids.subarray(at, at + idBytes));
    const parentId = await this.#currentId(level + 1, parent);
    if (isZeroId(parentId)) return zeroId;
    return Buffer.from((await this.#store.read(parentId)).subarray(at, at + idBytes));
  }

  /** Writes all that is left; answers the id of the top (`zeroId`: all zeros). */
  async finish(): Promise<Buffer> {
    return this.#alone(async () => {
      await this.#flush(0);
      return this.#root ?? zeroId;
    });
  }
}

export function rootOf(top: Buffer, shape: TreeShape, sizeBytes: number): DiskRoot {
  if (isZeroId(top)) return { hash: '', depth: 0, sizeBytes };
  return { hash: top.toString('hex'), depth: shape.depth, sizeBytes };
}
