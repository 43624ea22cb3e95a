import type { BlobReader } from '../blobs/port.ts';
import { RouseError } from '../errors.ts';
import { vaultLimits } from '../limits.ts';
import type { BlockCache, IdCell } from './block-cache.ts';
import type { BlockPlace } from './block-index.ts';
import { idKey } from './hash.ts';
import { PackStream } from './pack-stream.ts';
import type { PackReaders } from './pack-readers.ts';
import type { PackWriter } from './pack-writer.ts';
import { corruptRecord, decodeRecord, recordBytesMax } from './record.ts';
import type { VaultIndex } from './vault-index.ts';

/** How many rounds of the cache's hand a block survives unused: nodes lead to many blocks. */
export const dataWeight = 1;
export const nodeWeight = 3;

interface Wanted extends BlockPlace {
  readonly id: IdCell;
  readonly weight: number;
  readonly done: (error?: unknown) => void;
}

/**
 * Blocks by id: from the cache, else from their pack into the cache. Whatever comes from a pack is
 * checked first (record.ts), so the cache never holds a wrong byte.
 */
export class BlockStore {
  readonly cache: BlockCache;
  readonly #index: VaultIndex;
  readonly #readers: PackReaders;
  readonly #writer: PackWriter;
  readonly #scratch: Buffer;
  readonly #stream: PackStream;
  readonly #place: BlockPlace = { pack: 0, offset: 0, length: 0 };
  readonly #loading = new Map<string, Promise<void>>();

  constructor(cache: BlockCache, index: VaultIndex, readers: PackReaders, writer: PackWriter) {
    this.cache = cache;
    this.#index = index;
    this.#readers = readers;
    this.#writer = writer;
    const recordMax = recordBytesMax(cache.blockBytes) + 64;
    this.#scratch = Buffer.allocUnsafeSlow(recordMax);
    this.#stream = new PackStream(Math.max(vaultLimits.streamBytes, recordMax));
  }

  /**
   * A slot with at least the first `need` bytes of the block, without waiting for any disk, or -1:
   * then `load` it.
   */
  now(id: IdCell, weight: number, need: number): number {
    const slot = this.cache.find(id);
    if (slot >= 0 && (this.cache.filled[slot] as number) >= need) {
      this.cache.hits++;
      this.cache.touch(slot, weight);
      return slot;
    }
    const place = this.#place;
    if (!this.#index.find(id.bytes, 0, place)) return this.#fromPending(id, weight);
    const reader = this.#readers.now(place.pack);
    if (reader === undefined) return -1;
    const bytes = this.#scratch.subarray(0, place.length);
    if (!reader.readNow(bytes, place.offset)) return -1;
    this.cache.misses++;
    return this.#fill(slot, bytes, id, weight, place, slot >= 0 ? this.cache.blockBytes : need);
  }

  /**
   * Fills `target` with the whole block and leaves the cache as it is; false as with `now`. For who
   * reads much, in order, and once.
   */
  passNow(id: IdCell, target: Uint8Array): boolean {
    const { cache } = this;
    const slot = cache.find(id);
    const isCached = slot >= 0 && cache.filled[slot] === cache.blockBytes;
    if (!isCached) {
      const record = this.#stream.following(id.bytes) ?? this.#streamed(id);
      if (record !== undefined && typeof decodeRecord(record, id.bytes, target) === 'number') {
        cache.misses++;
        return true;
      }
      // Numbers of packs change with a rescan; what is truly bad is told by who reads it alone.
      this.#stream.forget();
    }
    const found = this.now(id, dataWeight, cache.blockBytes);
    if (found < 0) return false;
    const start = found * cache.blockBytes;
    cache.bytes.copy(target, 0, start, start + cache.blockBytes);
    return true;
  }

  #streamed(id: IdCell): Buffer | undefined {
    const place = this.#place;
    if (!this.#index.find(id.bytes, 0, place)) return undefined;
    const reader = this.#readers.now(place.pack);
    return reader === undefined ? undefined : this.#stream.at(place, reader);
  }

  #fromPending(id: IdCell, weight: number): number {
    const record = this.#writer.pending(id.bytes);
    if (record === undefined) throw missingBlock(id);
    this.cache.misses++;
    const { cache } = this;
    return this.#fill(cache.find(id), record, id, weight, undefined, cache.blockBytes);
  }

  /** Unpacks a record into its slot, `old`, or (-1) a new one; throws when it is not the block. */
  #fill(
    old: number,
    bytes: Buffer,
    id: IdCell,
    weight: number,
    place: BlockPlace | undefined,
    need: number,
  ): number {
    const { cache } = this;
    const slot = old >= 0 ? old : cache.take();
    const filled = decodeRecord(bytes, id.bytes, cache.slot(slot), need);
    if (typeof filled === 'string') {
      if (old >= 0) cache.drop(old);
      throw this.#corrupt(place, filled);
    }
    cache.filled[slot] = filled;
    if (old < 0) cache.keep(slot, id, weight);
    return slot;
  }

  /** The whole block is in the cache. */
  #has(id: IdCell): boolean {
    const slot = this.cache.find(id);
    return slot >= 0 && this.cache.filled[slot] === this.cache.blockBytes;
  }

  #corrupt(place: BlockPlace | undefined, problem: string): RouseError {
    if (place === undefined) return new RouseError('internal', `a record in memory: ${problem}`);
    return corruptRecord({ pack: this.#index.packName(place.pack), offset: place.offset }, problem);
  }

  /**
   * Brings blocks into the cache, neighbours by one read. Rejects with the first bad block's error
   * after all others have arrived. The cells are kept: pass copies.
   */
  async load(ids: readonly IdCell[], weight: number): Promise<void> {
    const waits: Promise<void>[] = [];
    const wanted: Wanted[] = [];
    for (const id of ids) {
      if (this.#has(id)) continue;
      const key = idKey(id.bytes);
      const under = this.#loading.get(key);
      if (under !== undefined) {
        waits.push(under);
        continue;
      }
      const place = { pack: 0, offset: 0, length: 0 };
      if (!this.#index.find(id.bytes, 0, place)) {
        this.#fromPending(id, weight);
        continue;
      }
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const done = (error?: unknown) => {
        this.#loading.delete(key);
        if (error === undefined) resolve();
        else reject(error);
      };
      this.#loading.set(key, promise);
      waits.push(promise);
      wanted.push({ id, weight, done, ...place });
    }
    for (const group of groupNeighbours(wanted)) void this.#fetch(group);
    const ended = await Promise.allSettled(waits);
    const failed = ended.find((end) => end.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }

  /** Never rejects: each wanted block hears how it went. */
  async #fetch(group: readonly Wanted[]): Promise<void> {
    const first = group[0] as Wanted;
    const last = group.at(-1) as Wanted;
    try {
      await this.#readers.use(first.pack, async (reader) => {
        const bytes = Buffer.allocUnsafe(last.offset + last.length - first.offset);
        await reader.read(bytes, first.offset);
        for (const wanted of group) this.#arrive(wanted, bytes, first.offset);
      });
    } catch (error) {
      const named = this.#withPack(error, first);
      for (const wanted of group) wanted.done(named);
    }
  }

  #arrive(wanted: Wanted, bytes: Buffer, start: number): void {
    try {
      if (!this.#has(wanted.id)) {
        this.cache.misses++;
        const at = wanted.offset - start;
        const record = bytes.subarray(at, at + wanted.length);
        const { cache } = this;
        const { id, weight } = wanted;
        this.#fill(cache.find(id), record, id, weight, wanted, cache.blockBytes);
      }
      wanted.done();
    } catch (error) {
      wanted.done(error);
    }
  }

  #withPack(error: unknown, place: BlockPlace): unknown {
    if (!(error instanceof RouseError) || error.code !== 'not-found') return error;
    return corruptRecord(
      { pack: this.#index.packName(place.pack), offset: place.offset },
      'the pack is gone',
    );
  }

  /**
   * Where blocks would have to be waited for, fetches them beforehand; what is in the page cache
   * already is left to those who need it. Bad blocks are left to them as well.
   */
  async readAhead(ids: readonly IdCell[]): Promise<void> {
    const cold = ids.filter((id) => {
      if (this.#has(id) || !this.#index.find(id.bytes, 0, this.#place)) return false;
      const reader = this.#readers.now(this.#place.pack);
      return reader === undefined || !isWarm(reader, this.#place);
    });
    if (cold.length > 0) await this.load(cold, dataWeight).catch(() => undefined);
  }
}

const probe = Buffer.alloc(1);

/** The last byte stands for the record: the page cache is filled upwards. */
function isWarm(reader: BlobReader, place: BlockPlace): boolean {
  return reader.readNow(probe, place.offset + place.length - 1);
}

export function missingBlock(id: IdCell): RouseError {
  return new RouseError(
    'corrupt-data',
    `block ${id.bytes.toString('hex')} is missing from the vault`,
    { advice: 'Run "rouse vault rescan", then "rouse vault verify".' },
  );
}

function groupNeighbours(wanted: Wanted[]): Wanted[][] {
  wanted.sort((a, b) => a.pack - b.pack || a.offset - b.offset);
  const groups: Wanted[][] = [];
  let group: Wanted[] = [];
  for (const next of wanted) {
    const first = group[0];
    const last = group.at(-1);
    const isNear =
      first !== undefined &&
      last !== undefined &&
      next.pack === last.pack &&
      next.offset - (last.offset + last.length) <= vaultLimits.fetchGapBytesMax &&
      next.offset + next.length - first.offset <= vaultLimits.fetchBytesMax;
    if (isNear) {
      group.push(next);
    } else {
      group = [next];
      groups.push(group);
    }
  }
  return groups;
}
