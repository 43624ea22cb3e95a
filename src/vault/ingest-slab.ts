import { codecs, type CodecName } from './codecs.ts';
import { idBytes, type HashBlock } from './hash.ts';
import { encodeRecord, recordBytesMax } from './record.ts';

/**
 * A batch of blocks on its way in, in memory that the main thread and the workers share. Whoever
 * was told last owns it; it is handed over by messages, so no further synchronisation is needed.
 *
 *   plain    n blocks, padded with zeros
 *   ids      n x 32 bytes, written by the hashing step
 *   codecs   n bytes: which codec to try; `skip` for blocks that are known already
 *   lengths  n x u32, written by the packing step
 *   records  n records, written by the packing step
 */
export const skip = 255;

export interface SlabMemory {
  readonly plain: SharedArrayBuffer;
  readonly results: SharedArrayBuffer;
}

export class SlabViews {
  readonly blocks: number;
  readonly plain: Buffer;
  readonly ids: Buffer;
  readonly codecs: Buffer;
  readonly lengths: Uint32Array;
  readonly records: Buffer;
  readonly #blockBytes: number;
  readonly #recordRoom: number;

  constructor(memory: SlabMemory, blockBytes: number) {
    this.#blockBytes = blockBytes;
    this.#recordRoom = recordBytesMax(blockBytes);
    this.blocks = memory.plain.byteLength / blockBytes;
    const n = this.blocks;
    this.plain = Buffer.from(memory.plain);
    this.ids = Buffer.from(memory.results, 0, n * idBytes);
    this.lengths = new Uint32Array(memory.results, n * idBytes, n);
    this.records = Buffer.from(memory.results, n * (idBytes + 4), n * this.#recordRoom);
    this.codecs = Buffer.from(memory.results, n * (idBytes + 4 + this.#recordRoom), n);
  }

  block(i: number): Buffer {
    return this.plain.subarray(i * this.#blockBytes, (i + 1) * this.#blockBytes);
  }

  id(i: number): Buffer {
    return this.ids.subarray(i * idBytes, (i + 1) * idBytes);
  }

  /** The record of a block, after packing. */
  record(i: number): Buffer {
    const start = i * this.#recordRoom;
    return this.records.subarray(start, start + (this.lengths[i] ?? 0));
  }

  hashBlocks(count: number, hash: HashBlock): void {
    for (let i = 0; i < count; i++) this.ids.set(hash(this.block(i)), i * idBytes);
  }

  packBlocks(count: number): void {
    for (let i = 0; i < count; i++) {
      const codec = codecNames[this.codecs[i] ?? skip];
      if (codec === undefined) continue;
      const start = i * this.#recordRoom;
      const room = this.records.subarray(start, start + this.#recordRoom);
      this.lengths[i] = encodeRecord(room, this.id(i), this.block(i), codec);
    }
  }
}

const codecNames: readonly (CodecName | undefined)[] = (() => {
  const byNumber: CodecName[] = [];
  for (const name of ['raw', 'lz4', 'zstd'] as const) byNumber[codecs[name]] = name;
  return byNumber;
})();

export function newSlabMemory(slabBytes: number, blockBytes: number): SlabMemory {
  const blocks = Math.max(1, Math.floor(slabBytes / blockBytes));
  const perBlock = idBytes + 4 + recordBytesMax(blockBytes) + 1;
  return {
    plain: new SharedArrayBuffer(blocks * blockBytes),
    results: new SharedArrayBuffer(blocks * perBlock),
  };
}
