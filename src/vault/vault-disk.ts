import type { Extent } from '../lib/disk.ts';
import { RouseError } from '../errors.ts';
import { vaultLimits } from '../limits.ts';
import type { DiskRoot, VaultDisk } from './api.ts';
import { IdCell } from './block-cache.ts';
import { dataWeight, nodeWeight, type BlockStore } from './block-store.ts';
import { blocksBelow, treeShape, type TreeShape } from './shape.ts';

/** Answers of `#find` besides a slot. */
const cold = -1;
const hole = -2;
/** ... and of `#pass`: the block is where it is wanted. */
const passed = -3;

/** Leaf nodes remembered for each disk: 256 x 32 MiB of disk at 32 KiB blocks, in 3 KiB. */
const hints = 256;

/** A read that begins this near to where the last ones ended goes on with them. */
const sequentialSlackBytes = 1024 * 1024;
const sequentialAfterBytes = 256 * 1024;

/** From here on whole blocks are unpacked: the rest of them will be wanted as well. */
const wholeAfterBytes = 32 * 1024;

/** From here on a reader is one that reads once, and pushes nothing out of a full cache. */
const passAfterBytes = 8 * 1024 * 1024;

export function checkRoot(root: DiskRoot, blockBytes: number): void {
  const shape = treeShape(root.sizeBytes, blockBytes);
  const good =
    Number.isSafeInteger(root.sizeBytes) &&
    root.sizeBytes >= 0 &&
    (root.hash === '' ? root.depth === 0 : /^[0-9a-f]{64}$/.test(root.hash)) &&
    (root.hash === '' || (root.depth === shape.depth && shape.blocks > 0));
  if (!good)
    throw new RouseError('bad-request', `${JSON.stringify(root)} is no root of a disk here`);
}

/**
 * Reads one disk by its tree. It keeps a few hints of where nodes lie in the cache, and nothing
 * else; any number of them may be open. Reads may run concurrently.
 */
export class TreeDisk implements VaultDisk {
  readonly root: DiskRoot;
  readonly sizeBytes: number;
  readonly #store: BlockStore;
  readonly #shape: TreeShape;
  readonly #top: IdCell | undefined;
  /** The id that `#find` looked at last; when the answer is `cold`, the one to load. */
  readonly #cell = new IdCell();
  #cellWeight = dataWeight;
  readonly #hintNode = new Float64Array(hints).fill(-1);
  readonly #hintSlot = new Int32Array(hints);
  readonly #hintGeneration = new Uint32Array(hints);
  #sequentialEnd = 0;
  #sequentialBytes = 0;
  #aheadUntil = 0;
  #isReadingAhead = false;
  /** Grows when a read had to wait, fades when none has: only then is reading ahead worth it. */
  #waits = 0;

  constructor(root: DiskRoot, store: BlockStore) {
    checkRoot(root, store.cache.blockBytes);
    this.root = root;
    this.sizeBytes = root.sizeBytes;
    this.#store = store;
    this.#shape = treeShape(root.sizeBytes, store.cache.blockBytes);
    if (root.hash !== '') this.#top = new IdCell(Buffer.from(root.hash, 'hex'));
  }

  readNow(target: Uint8Array, offset: number): boolean {
    this.#checkRange(offset, target.length);
    const { blockBytes } = this.#shape;
    const cache = this.#store.cache;
    const isWholeWanted = this.#sequentialBytes >= wholeAfterBytes;
    const isPassing = this.#sequentialBytes >= passAfterBytes && cache.isFull;
    let done = 0;
    while (done < target.length) {
      const position = offset + done;
      const block = Math.floor(position / blockBytes);
      const within = position - block * blockBytes;
      const length = Math.min(blockBytes - within, target.length - done);
      const slot =
        isPassing && length === blockBytes
          ? this.#pass(block, target.subarray(done, done + length))
          : this.#find(block, isWholeWanted ? blockBytes : within + length);
      if (slot === cold) return false;
      if (slot === passed) {
        done += length;
        continue;
      }
      if (slot === hole) target.fill(0, done, done + length);
      else {
        const start = slot * blockBytes + within;
        cache.bytes.copy(target, done, start, start + length);
      }
      done += length;
    }
    this.#noteSequence(offset, target.length);
    return true;
  }

  #checkRange(offset: number, length: number): void {
    if (offset < 0 || offset + length > this.sizeBytes)
      throw new RouseError(
        'bad-request',
        `bytes ${offset} to ${offset + length} reach beyond the disk's ${this.sizeBytes}`,
      );
  }

  /**
   * A slot with the first `need` bytes of a data block, `hole`, or `cold` (then `#cell` says what
   * to load).
   */
  #find(block: number, need: number): number {
    const found = this.#identify(block);
    return found < 0 ? found : this.#store.now(this.#cell, dataWeight, need);
  }

  /** Puts a whole data block into `target`, past the cache: `passed`, `hole` or `cold`. */
  #pass(block: number, target: Uint8Array): number {
    const found = this.#identify(block);
    if (found < 0) return found;
    return this.#store.passNow(this.#cell, target) ? passed : cold;
  }

  /** Puts the id of a data block into `#cell`: 0, `hole`, or `cold` (then it is a node's). */
  #identify(block: number): number {
    if (this.#top === undefined) return hole;
    const { depth, fanout } = this.#shape;
    const words = this.#store.cache.words;
    const nodeWords = this.#shape.blockBytes / 4;
    if (depth === 0) this.#cell.load(this.#top.words, 0);
    else {
      const leaf = this.#findLeaf(Math.floor(block / fanout));
      if (leaf < 0) return leaf;
      if (!this.#cell.load(words, leaf * nodeWords + (block % fanout) * 8)) return hole;
    }
    this.#cellWeight = dataWeight;
    return 0;
  }

  #findLeaf(leaf: number): number {
    const cache = this.#store.cache;
    const hint = leaf % hints;
    if (this.#hintNode[hint] === leaf) {
      const slot = this.#hintSlot[hint] as number;
      if (cache.generations[slot] === this.#hintGeneration[hint]) {
        cache.touch(slot, nodeWeight);
        return slot;
      }
    }
    const slot = this.#descend(1, leaf);
    if (slot >= 0) {
      this.#hintNode[hint] = leaf;
      this.#hintSlot[hint] = slot;
      this.#hintGeneration[hint] = cache.generations[slot] as number;
    }
    return slot;
  }

  /** The slot of the node of a level, from the top downwards. */
  #descend(level: number, number: number): number {
    const { depth, fanout, blockBytes } = this.#shape;
    const cell = this.#cell;
    if (this.#top === undefined) return hole;
    cell.load(this.#top.words, 0);
    this.#cellWeight = nodeWeight;
    for (let at = depth; ; at--) {
      const slot = this.#store.now(cell, nodeWeight, blockBytes);
      if (slot < 0 || at === level) return slot;
      const child = Math.floor(number / fanout ** (at - 1 - level)) % fanout;
      if (!cell.load(this.#store.cache.words, slot * (blockBytes / 4) + child * 8)) return hole;
    }
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    if (this.readNow(target, offset)) return;
    this.#waits = waitsRemembered;
    const { blockBytes } = this.#shape;
    const first = Math.floor(offset / blockBytes);
    const end = Math.ceil((offset + target.length) / blockBytes);
    for (let block = first; block < end; block += blocksAtOnce) {
      const until = Math.min(end, block + blocksAtOnce);
      const missing = await this.#missing(block, until);
      await this.#store.load(missing, dataWeight);
      for (let one = block; one < until; one++) await this.#copyBlock(one, target, offset);
    }
    this.#noteSequence(offset, target.length);
  }

  /** The data blocks of [first, end) that must be waited for; their nodes are waited for here. */
  async #missing(first: number, end: number): Promise<IdCell[]> {
    const missing: IdCell[] = [];
    for (let block = first; block < end;) {
      if (this.#find(block, this.#shape.blockBytes) === cold) {
        const id = this.#cell.copy();
        if (this.#cellWeight === nodeWeight) {
          await this.#store.load([id], nodeWeight);
          continue;
        }
        missing.push(id);
      }
      block++;
    }
    return missing;
  }

  async #copyBlock(block: number, target: Uint8Array, offset: number): Promise<void> {
    const { blockBytes } = this.#shape;
    const from = Math.max(offset, block * blockBytes);
    const to = Math.min(offset + target.length, (block + 1) * blockBytes);
    for (let attempt = 0; attempt < attemptsMax; attempt++) {
      const slot = this.#find(block, blockBytes);
      if (slot === hole) return void target.fill(0, from - offset, to - offset);
      if (slot !== cold) {
        const start = slot * blockBytes + (from - block * blockBytes);
        this.#store.cache.bytes.copy(target, from - offset, start, start + (to - from));
        return;
      }
      await this.#store.load([this.#cell.copy()], this.#cellWeight);
    }
    throw new RouseError('internal', 'the block cache is too small for the readers it has', {
      advice: 'Give the cache more memory.',
    });
  }

  #noteSequence(offset: number, length: number): void {
    const distance = offset - this.#sequentialEnd;
    const isNear = distance >= -sequentialSlackBytes && distance <= sequentialSlackBytes;
    this.#sequentialBytes = isNear ? this.#sequentialBytes + length : length;
    this.#sequentialEnd = isNear ? Math.max(this.#sequentialEnd, offset + length) : offset + length;
    if (!isNear) this.#aheadUntil = 0;
    if (this.#waits === 0 || this.#isReadingAhead) return;
    if (this.#sequentialBytes < sequentialAfterBytes) return;
    const wish = Math.min(this.sizeBytes, this.#sequentialEnd + vaultLimits.readAheadBytes);
    if (this.#aheadUntil > this.#sequentialEnd + vaultLimits.readAheadBytes / 2) return;
    void this.#readAhead(Math.max(this.#aheadUntil, this.#sequentialEnd), wish);
  }

  async #readAhead(from: number, to: number): Promise<void> {
    const { blockBytes } = this.#shape;
    this.#isReadingAhead = true;
    this.#waits--;
    this.#aheadUntil = to;
    try {
      const ids: IdCell[] = [];
      const end = Math.floor(to / blockBytes);
      for (let block = Math.floor(from / blockBytes); block < end; block++) {
        const id = await this.#idOf(block);
        if (id !== undefined) ids.push(id);
      }
      for (let at = 0; at < ids.length; at += blocksAtOnce)
        await this.#store.readAhead(ids.slice(at, at + blocksAtOnce));
    } catch {
      this.#aheadUntil = 0; // Whoever reads the bad block itself hears of it.
    } finally {
      this.#isReadingAhead = false;
    }
  }

  /** The id of a data block, without its content; undefined for zeros. */
  async #idOf(block: number): Promise<IdCell | undefined> {
    if (this.#top === undefined) return undefined;
    if (this.#shape.depth === 0) return this.#top;
    const { fanout, blockBytes } = this.#shape;
    for (let attempt = 0; attempt < attemptsMax; attempt++) {
      const leaf = this.#findLeaf(Math.floor(block / fanout));
      if (leaf === hole) return undefined;
      if (leaf >= 0) {
        const id = new IdCell();
        const at = leaf * (blockBytes / 4) + (block % fanout) * 8;
        return id.load(this.#store.cache.words, at) ? id : undefined;
      }
      await this.#store.load([this.#cell.copy()], nodeWeight);
    }
    return undefined;
  }

  async extents(offset: number, length: number): Promise<readonly Extent[]> {
    this.#checkRange(offset, length);
    const { blockBytes, fanout } = this.#shape;
    const found: { offset: number; length: number; zero: boolean }[] = [];
    const end = offset + length;
    const add = (until: number, zero: boolean) => {
      const from = found.length === 0 ? offset : lastEnd(found);
      const to = Math.min(until, end);
      const last = found.at(-1);
      if (to <= from) return;
      if (last !== undefined && last.zero === zero) last.length += to - from;
      else found.push({ offset: from, length: to - from, zero });
    };
    const first = Math.floor(offset / blockBytes);
    const endBlock = Math.ceil(end / blockBytes);
    for (let block = first; block < endBlock;) {
      const mayBeHole = block === first || block % fanout === 0;
      const skip = mayBeHole ? await this.#holeBelow(block) : 0;
      const zero = skip > 0 || (await this.#idOf(block)) === undefined;
      block = skip > 0 ? (Math.floor(block / skip) + 1) * skip : block + 1;
      add(block * blockBytes, zero);
    }
    return found;
  }

  /** Blocks in the largest hole-subtree around a block that ends at its multiple; 0: none. */
  async #holeBelow(block: number): Promise<number> {
    const { depth, fanout, blocks } = this.#shape;
    if (this.#top === undefined) return Math.max(blocks, 1);
    for (let level = depth - 1; level >= 1; level--) {
      const number = Math.floor(block / blocksBelow(fanout, level));
      let slot = this.#descend(level, number);
      for (let attempt = 0; slot === cold && attempt < attemptsMax; attempt++) {
        await this.#store.load([this.#cell.copy()], nodeWeight);
        slot = this.#descend(level, number);
      }
      if (slot === hole) return blocksBelow(fanout, level);
    }
    return 0;
  }

  async close(): Promise<void> {}
}

/** Blocks looked up and loaded in one go by a large read: 32 x 32 KiB = 1 MiB. */
const blocksAtOnce = 32;

/** A block that another reader evicts between its arrival and the copy is fetched again. */
const attemptsMax = 16;

/** Windows that are read ahead after a read that had to wait. */
const waitsRemembered = 8;

function lastEnd(extents: readonly Extent[]): number {
  const last = extents.at(-1);
  return last === undefined ? 0 : last.offset + last.length;
}
