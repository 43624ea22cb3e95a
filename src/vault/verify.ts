import { isRouseError, RouseError } from '../errors.ts';
import { vaultLimits } from '../limits.ts';
import type { DiskRoot, Saveset, VerifyProgress, VerifyReport } from './api.ts';
import type { BlockPlace } from './block-index.ts';
import { idBytes, idKey, isZeroId, type HashBlock } from './hash.ts';
import type { PackReaders } from './pack-readers.ts';
import { decodeRecord } from './record.ts';
import { blocksBelow } from './shape.ts';
import type { VaultIndex } from './vault-index.ts';

export interface VerifyOptions {
  readonly blockBytes: number;
  readonly index: VaultIndex;
  readonly readers: PackReaders;
  readonly hash: HashBlock;
  /** A turn for everybody else. */
  pause(): Promise<void>;
  readonly onProgress: ((progress: VerifyProgress) => void) | undefined;
  readonly signal: AbortSignal | undefined;
}

type Outcome = VerifyReport['savesets'][number];

/** A subtree that was good throughout: other savesets share it. */
interface GoodTree {
  readonly blocks: number;
}

/**
 * Re-reads and re-hashes every block that savesets need, straight from the packs (the cache proves
 * nothing). A subtree that was found good is not walked again for the next saveset; a bad one is,
 * so that each saveset names the ranges that it loses.
 */
export class Verification {
  readonly #options: VerifyOptions;
  readonly #good = new Map<string, GoodTree>();
  readonly #plain: Buffer;
  #sincePause = 0;
  #doneBytes = 0;
  #totalBytes = 0;

  constructor(options: VerifyOptions) {
    this.#options = options;
    this.#plain = Buffer.allocUnsafe(options.blockBytes);
  }

  async run(savesets: readonly Saveset[]): Promise<VerifyReport> {
    const roots = savesets.flatMap(({ disks, files }) => [...disks, ...files]);
    this.#totalBytes = roots.reduce((sum, { root }) => sum + root.sizeBytes, 0);
    const outcomes: Outcome[] = [];
    for (const saveset of savesets) outcomes.push(await this.#saveset(saveset));
    return { savesets: outcomes, ok: outcomes.every((outcome) => outcome.ok) };
  }

  async #saveset(saveset: Saveset): Promise<Outcome> {
    const problems = new Problems();
    let blocks = 0;
    for (const disk of saveset.disks) blocks += await this.#root('disk', disk, problems);
    for (const file of saveset.files) blocks += await this.#root('file', file, problems);
    return {
      id: saveset.id,
      machine: saveset.machine.name,
      ok: problems.count === 0,
      blocks,
      bytes: blocks * this.#options.blockBytes,
      problems: problems.sentences(),
    };
  }

  async #root(
    kind: string,
    { name, root }: { name: string; root: DiskRoot },
    problems: Problems,
  ): Promise<number> {
    const start = this.#doneBytes;
    const report = (from: number, to: number, what: string) =>
      problems.add(
        `${kind} ${name}, bytes ${from} to ${Math.min(to, root.sizeBytes) - 1}: ${what}`,
      );
    const id = Buffer.from(root.hash, 'hex');
    const blocks =
      root.hash === '' ? 0 : await this.#tree(id, root.depth, 0, { root, report, start });
    this.#doneBytes = start + root.sizeBytes;
    this.#progress();
    return blocks;
  }

  #progress(): void {
    this.#options.onProgress?.({ doneBytes: this.#doneBytes, totalBytes: this.#totalBytes });
  }

  /** Walks a subtree; answers how many good blocks it has, its nodes included. */
  async #tree(id: Buffer, level: number, first: number, walk: Walk): Promise<number> {
    const key = level > 0 ? `${level}${idKey(id)}` : undefined;
    const good = key === undefined ? undefined : this.#good.get(key);
    if (good !== undefined) return good.blocks;
    const { blockBytes } = this.#options;
    const problem = await this.#block(id);
    if (problem !== undefined) {
      const end = first + blocksBelow(blockBytes / idBytes, level);
      walk.report(first * blockBytes, end * blockBytes, problem);
      walk.bad = true;
      return 0;
    }
    if (level === 0) {
      this.#doneBytes = walk.start + Math.min((first + 1) * blockBytes, walk.root.sizeBytes);
      return 1;
    }
    const below = { ...walk, bad: false };
    const blocks = 1 + (await this.#childrenOf(Buffer.from(this.#plain), level, first, below));
    if (below.bad) walk.bad = true;
    else if (key !== undefined) this.#good.set(key, { blocks });
    return blocks;
  }

  async #childrenOf(node: Buffer, level: number, first: number, walk: Walk): Promise<number> {
    const fanout = this.#options.blockBytes / idBytes;
    const span = blocksBelow(fanout, level - 1);
    let blocks = 0;
    for (let child = 0; child < fanout; child++) {
      const id = node.subarray(child * idBytes, (child + 1) * idBytes);
      if (!isZeroId(id)) blocks += await this.#tree(id, level - 1, first + child * span, walk);
    }
    return blocks;
  }

  /** Reads a block into `#plain`; answers what is wrong with it, or undefined. */
  async #block(id: Buffer): Promise<string | undefined> {
    const { index, hash } = this.#options;
    await this.#yield();
    const place: BlockPlace = { pack: 0, offset: 0, length: 0 };
    if (!index.find(id, 0, place)) return `block ${id.toString('hex')} is in no pack`;
    const where = `pack ${index.packName(place.pack)} at offset ${place.offset}`;
    const record = Buffer.allocUnsafe(place.length);
    try {
      await this.#options.readers.use(place.pack, async (reader) => {
        if (!reader.readNow(record, place.offset)) await reader.read(record, place.offset);
      });
    } catch (error) {
      if (!isRouseError(error)) throw error;
      return `${where} cannot be read: ${error.message}`;
    }
    const problem = decodeRecord(record, id, this.#plain);
    if (typeof problem === 'string') return `${where}: ${problem}`;
    return hash(this.#plain).equals(id) ? undefined : `${where}: its content has another hash`;
  }

  async #yield(): Promise<void> {
    if (++this.#sincePause < vaultLimits.verifyBatchBlocks) return;
    this.#sincePause = 0;
    if (this.#options.signal?.aborted === true)
      throw new RouseError('cancelled', 'verification was cancelled');
    this.#progress();
    await this.#options.pause();
  }
}

interface Walk {
  readonly root: DiskRoot;
  /** Bytes of all roots before this one. */
  readonly start: number;
  report(from: number, to: number, what: string): void;
  bad?: boolean;
}

class Problems {
  count = 0;
  readonly #named: string[] = [];

  add(sentence: string): void {
    this.count++;
    if (this.#named.length < vaultLimits.verifyProblemsMax) this.#named.push(sentence);
  }

  sentences(): string[] {
    const more = this.count - this.#named.length;
    return more > 0 ? [...this.#named, `and ${more} more like these`] : this.#named;
  }
}
