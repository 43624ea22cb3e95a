import { createRequire } from 'node:module';
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';

/** How a record's payload is packed; the numbers are part of the format. */
export const codecs = { raw: 0, lz4: 1, zstd: 2 } as const;
export type CodecName = keyof typeof codecs;

export interface Codec {
  /**
   * Packs `plain` into `target`: bytes written, or 0 when the result does not fit. A target
   * shorter than `plain` makes "does not pay" cheap to find out.
   */
  compress(plain: Uint8Array, target: Uint8Array): number;
  /** Fills `target` exactly; false when the payload is not what made it. */
  decompress(payload: Uint8Array, target: Uint8Array): boolean;
  /** Where it saves time: fills the first `need` bytes of `target`, and perhaps spoils the rest. */
  readonly decompressPart?: (payload: Uint8Array, target: Uint8Array, need: number) => boolean;
}

type Compress = (s: Uint8Array, t: Uint8Array, sBytes: number, room: number, acc: number) => number;
type Decompress = (s: Uint8Array, t: Uint8Array, sBytes: number, room: number) => number;
type Part = (s: Uint8Array, t: Uint8Array, sBytes: number, need: number, room: number) => number;

function loadLz4(): Codec {
  try {
    const loaded: unknown = createRequire(import.meta.url)('koffi');
    const library = (loaded as typeof import('koffi')).load('liblz4.so.1');
    const compress: Compress = library.func(
      'int LZ4_compress_fast(void* s, void* t, int bytes, int room, int acceleration)',
    );
    const decompress: Decompress = library.func(
      'int LZ4_decompress_safe(void* s, void* t, int bytes, int room)',
    );
    const part: Part = library.func(
      'int LZ4_decompress_safe_partial(void* s, void* t, int bytes, int need, int room)',
    );
    return {
      compress: (plain, target) => compress(plain, target, plain.length, target.length, 1),
      decompress: (payload, target) =>
        decompress(payload, target, payload.length, target.length) === target.length,
      decompressPart: (payload, target, need) =>
        part(payload, target, payload.length, need, target.length) >= need,
    };
  } catch {
    return portableLz4();
  }
}

/** Three times slower; for machines without liblz4. The package puts the length in front. */
export function portableLz4(): Codec {
  const loaded: unknown = createRequire(import.meta.url)('lz4-napi');
  const { compressSync, uncompressSync } = loaded as typeof import('lz4-napi');
  return {
    compress: (plain, target) => {
      const packed = compressSync(Buffer.from(plain)).subarray(4);
      if (packed.length > target.length) return 0;
      target.set(packed);
      return packed.length;
    },
    decompress: (payload, target) => {
      const sized = Buffer.allocUnsafe(payload.length + 4);
      sized.writeUInt32LE(target.length);
      sized.set(payload, 4);
      try {
        const plain = uncompressSync(sized);
        if (plain.length === target.length) target.set(plain);
        return plain.length === target.length;
      } catch {
        return false;
      }
    },
  };
}

/** docs/decisions/0006-zstd-level.md. */
const zstdLevel = 5;

type Context = unknown;
type ZstdCompress = (
  ...a: readonly [Context, Uint8Array, number, Uint8Array, number, number]
) => number | bigint;
type ZstdDecompress = (
  ...a: readonly [Context, Uint8Array, number, Uint8Array, number]
) => number | bigint;

/** One context for each way and thread, made when it is first needed and kept: 1 MiB in all. */
function loadZstd(): Codec {
  try {
    const loaded: unknown = createRequire(import.meta.url)('koffi');
    const library = (loaded as typeof import('koffi')).load('libzstd.so.1');
    const newPacker: () => Context = library.func('void* ZSTD_createCCtx()');
    const newUnpacker: () => Context = library.func('void* ZSTD_createDCtx()');
    const compress: ZstdCompress = library.func(
      'size_t ZSTD_compressCCtx(void* c, void* t, size_t room, void* s, size_t bytes, int level)',
    );
    const decompress: ZstdDecompress = library.func(
      'size_t ZSTD_decompressDCtx(void* c, void* t, size_t room, void* s, size_t bytes)',
    );
    let packer: Context;
    let unpacker: Context;
    return {
      compress: (plain, target) => {
        packer ??= newPacker();
        if (packer === null) return 0;
        const room = target.length;
        const packed = Number(compress(packer, target, room, plain, plain.length, zstdLevel));
        return packed <= room ? packed : 0; // Errors are numbers just below 2^64.
      },
      decompress: (payload, target) => {
        unpacker ??= newUnpacker();
        if (unpacker === null) return false;
        const { length } = target;
        return Number(decompress(unpacker, target, length, payload, payload.length)) === length;
      },
    };
  } catch {
    return portableZstd;
  }
}

const zstdOptions = { params: { [constants.ZSTD_c_compressionLevel]: zstdLevel } };

/** Node's own, with a new context for each block; for machines without libzstd. */
export const portableZstd: Codec = {
  compress: (plain, target) => {
    const packed = zstdCompressSync(plain, zstdOptions);
    if (packed.length > target.length) return 0;
    target.set(packed);
    return packed.length;
  },
  decompress: (payload, target) => {
    try {
      const plain = zstdDecompressSync(payload, { maxOutputLength: target.length });
      if (plain.length === target.length) target.set(plain);
      return plain.length === target.length;
    } catch {
      return false;
    }
  },
};

const raw: Codec = {
  compress: () => 0,
  decompress: (payload, target) => {
    if (payload.length !== target.length) return false;
    target.set(payload);
    return true;
  },
};

const byNumber: readonly Codec[] = [raw, loadLz4(), loadZstd()];

export function codecOf(name: CodecName): Codec {
  return byNumber[codecs[name]] ?? raw;
}

export function codecByNumber(number: number): Codec | undefined {
  return byNumber[number];
}
