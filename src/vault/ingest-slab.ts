import { codecs, type CodecName } from './codecs.ts';
import { idBytes, type HashBlockInto } from './hash.ts';
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
  readonly codecs: Buffer;
  readonly lengths: Uint32Array;
  /** Views are made once: three for each block of each slab would cost more than the lookups. */
  readonly #blocks: readonly Buffer[];
  readonly #ids: readonly Buffer[];
  readonly #rooms: readonly Buffer[];

  constructor(memory: SlabMemory, blockBytes: number) {
    const recordRoom = recordBytesMax(blockBytes);
    this.blocks = memory.plain.byteLength / blockBytes;
    const n = this.blocks;
    this.lengths = new Uint32Array(memory.results, n * idBytes, n);
    const records = n * (idBytes + 4);
    this.codecs = Buffer.from(memory.results, records + n * recordRoom, n);
    const views = (buffer: SharedArrayBuffer, start: number, length: number) =>
      Array.from({ length: n }, (_, i) => Buffer.from(buffer, start + i * length, length));
    this.#blocks = views(memory.plain, 0, blockBytes);
    this.#ids = views(memory.results, 0, idBytes);
    this.#rooms = views(memory.results, records, recordRoom);
  }

  block(i: number): Buffer {
    return this.#blocks[i] as Buffer;
  }

  id(i: number): Buffer {
    return this.#ids[i] as Buffer;
  }

  /** After packing, the record of a block, `lengths[i]` bytes, and room behind it. */
  room(i: number): Buffer {
    return this.#rooms[i] as Buffer;
  }

  hashBlocks(count: number, hash: HashBlockInto): void {
    for (let i = 0; i < count; i++) hash(this.block(i), this.id(i));
  }

  packBlocks(count: number): void {
    for (let i = 0; i < count; i++) {
      const codec = codecNames[this.codecs[i] ?? skip];
      if (codec === undefined) continue;
      this.lengths[i] = encodeRecord(this.room(i), this.id(i), this.block(i), codec);
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
