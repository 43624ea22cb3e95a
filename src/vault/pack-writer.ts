import { isRouseError, RouseError } from '../errors.ts';
import type { BlobStore } from '../blobs/port.ts';
import { alignedBuffer } from '../lib/libc.ts';
import { vaultLimits } from '../limits.ts';
import { names } from './format.ts';
import { idKey } from './hash.ts';
import {
  encodePackEnd,
  encodePackHeader,
  packEntryBytes,
  packFooterBytes,
  packHeaderBytes,
  type PackEntry,
  type PackShape,
} from './pack.ts';
import { recordBytesMax } from './record.ts';
import type { VaultIndex } from './vault-index.ts';

interface OpenPack {
  readonly buffer: Buffer;
  readonly entries: PendingEntry[];
  used: number;
}

/** A block of a pack that is not written yet. */
interface PendingEntry extends PackEntry {
  readonly key: string;
  readonly pack: OpenPack;
}

/** A block's id, which nobody changes any more, and its `idKey`, made once. */
export interface KeyedId {
  readonly id: Buffer;
  readonly key: string;
}

/**
 * Gathers records into packs and writes them. A record is findable (`pending`) from the moment it is
 * appended; the index learns of it when its pack is durable. When a pack cannot be written its
 * blocks are forgotten and `failures` grows: every backup that was under way must fail, since it
 * may have counted on one of them.
 */
export class PackWriter {
  failures = 0;
  readonly #shape: PackShape;
  readonly #store: BlobStore;
  readonly #index: VaultIndex;
  readonly #roomBytes: number;
  readonly #pending = new Map<string, PendingEntry>();
  #open: OpenPack | undefined;
  readonly #writing = new Set<Promise<void>>();
  #spare: Buffer[] = [];
  #lastError: RouseError | undefined;

  constructor(shape: PackShape, store: BlobStore, index: VaultIndex, packBytes: number) {
    this.#shape = shape;
    this.#store = store;
    this.#index = index;
    this.#roomBytes = Math.max(packBytes, packHeaderBytes + recordBytesMax(shape.blockBytes));
  }

  /** Whether the block with this `idKey` is in a pack that is not written yet. */
  has(key: string): boolean {
    return this.#pending.has(key);
  }

  /** The record of a block whose pack is not written yet. */
  pending(id: Buffer): Buffer | undefined {
    if (this.#pending.size === 0) return undefined;
    const found = this.#pending.get(idKey(id));
    return found?.pack.buffer.subarray(found.offset, found.offset + found.length);
  }

  /**
   * Takes a copy of the record, the first `length` bytes of `bytes`, and keeps the id. Call `room`
   * now and then, or memory grows.
   */
  append({ id, key }: KeyedId, bytes: Buffer, length: number): void {
    const table = (this.#open?.entries.length ?? 0) * packEntryBytes + packFooterBytes;
    if (this.#open !== undefined && this.#open.used + length + table > this.#roomBytes)
      this.#seal(this.#open);
    const pack = (this.#open ??= this.#begin());
    const entry = { id, key, pack, offset: pack.used, length };
    bytes.copy(pack.buffer, pack.used, 0, length);
    pack.used += length;
    pack.entries.push(entry);
    this.#pending.set(key, entry);
  }

  #begin(): OpenPack {
    const buffer = this.#spare.pop() ?? alignedBuffer(this.#roomBytes);
    encodePackHeader(buffer, this.#shape);
    return { buffer, entries: [], used: packHeaderBytes };
  }

  #seal(pack: OpenPack): void {
    this.#open = undefined;
    const writing = this.#write(pack).finally(() => this.#writing.delete(writing));
    this.#writing.add(writing);
  }

  /** Never rejects: failures are counted, and everyone under way looks. */
  async #write(pack: OpenPack): Promise<void> {
    const { end, name } = encodePackEnd(pack.entries, pack.used, this.#shape.hash);
    try {
      await this.#putOnce(name, [pack.buffer.subarray(0, pack.used), end]);
      this.#index.addPack({ name, sizeBytes: pack.used + end.length }, pack.entries);
    } catch (error) {
      this.fail(
        isRouseError(error)
          ? error
          : new RouseError('io-error', `a pack could not be written: ${String(error)}`),
      );
    }
    for (const entry of pack.entries)
      if (this.#pending.get(entry.key) === entry) this.#pending.delete(entry.key);
    if (this.#spare.length < vaultLimits.packsWritingMax) this.#spare.push(pack.buffer);
  }

  /** Blocks that someone may count on will not be stored. */
  fail(error: RouseError): void {
    this.failures++;
    this.#lastError = error;
  }

  /** A pack of this name has this table, so what is there already is as good. */
  async #putOnce(name: string, chunks: readonly Uint8Array[]): Promise<void> {
    try {
      await this.#store.put(names.pack(name), chunks);
    } catch (error) {
      if (!isRouseError(error, 'already-exists')) throw error;
      const size = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
      const there = await this.#store.stat(names.pack(name));
      if (there?.sizeBytes !== size) throw error;
    }
  }

  /** Resolves when at most `packsWritingMax` packs are being written. */
  async room(): Promise<void> {
    while (this.#writing.size >= vaultLimits.packsWritingMax) await Promise.race(this.#writing);
    if (this.#index.shouldSave) await this.#index.save();
  }

  /** Everything appended before is durable and findable, or `check` throws. */
  async flush(): Promise<void> {
    if (this.#open !== undefined) this.#seal(this.#open);
    await Promise.all(this.#writing);
  }

  /** Throws why packs were lost since `failures` had this value. */
  check(failuresBefore: number): void {
    if (this.failures !== failuresBefore && this.#lastError !== undefined) throw this.#lastError;
  }

  /** Gives the memory back between backups. */
  release(): void {
    this.#spare = [];
  }
}
