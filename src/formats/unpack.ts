import { promisify } from 'node:util';
import * as zlib from 'node:zlib';

/**
 * Decompression with a bound known beforehand: a cluster or grain unpacks to exactly so many
 * bytes, and no more are ever made. Failures are undefined: the caller knows what to name.
 */
const inflateRaw = promisify<zlib.InputType, zlib.ZlibOptions, Buffer>(zlib.inflateRaw);
const inflate = promisify<zlib.InputType, zlib.ZlibOptions, Buffer>(zlib.inflate);
const zstdDecompress = promisify<zlib.InputType, zlib.ZstdOptions, Buffer>(zlib.zstdDecompress);

export async function unpackDeflate(
  packed: Uint8Array,
  form: 'raw' | 'zlib',
  sizeBytes: number,
): Promise<Uint8Array | undefined> {
  const options = { maxOutputLength: sizeBytes, chunkSize: Math.max(64, sizeBytes) };
  try {
    const bytes = await (form === 'raw' ? inflateRaw : inflate)(packed, options);
    return bytes.length === sizeBytes ? bytes : undefined;
  } catch {
    return undefined;
  }
}

/** One or more zstd frames that fill the piece; what follows them is padding. */
export async function unpackZstd(
  packed: Uint8Array,
  sizeBytes: number,
): Promise<Uint8Array | undefined> {
  const whole = new Uint8Array(sizeBytes);
  let filled = 0;
  let at = 0;
  while (filled < sizeBytes) {
    const length = zstdFrameBytes(packed.subarray(at));
    if (length === undefined) return undefined;
    const bytes = await unpackFrame(packed.subarray(at, at + length), sizeBytes - filled);
    if (bytes === undefined || bytes.length === 0) return undefined;
    whole.set(bytes, filled);
    filled += bytes.length;
    at += length;
  }
  return whole;
}

/** Windows of up to 16 MiB; the largest cluster is 2 MiB. */
const windowLogMax = 24;

async function unpackFrame(frame: Uint8Array, sizeMax: number): Promise<Buffer | undefined> {
  try {
    return await zstdDecompress(frame, {
      maxOutputLength: sizeMax,
      chunkSize: Math.max(64, sizeMax),
      params: { [zlib.constants.ZSTD_d_windowLogMax]: windowLogMax },
    });
  } catch {
    return undefined;
  }
}

/** RFC 8878, section 3.1.1: the length of the frame at the beginning, from its block headers. */
export function zstdFrameBytes(bytes: Uint8Array): number | undefined {
  if (bytes.length < 6 || readLittle(bytes, 0, 4) !== 0xfd2fb528) return undefined;
  const descriptor = bytes[4] ?? 0;
  const singleSegment = (descriptor & 0x20) !== 0;
  const hasChecksum = (descriptor & 0x04) !== 0;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] ?? 0;
  const contentBytes = [singleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6] ?? 0;
  let at = 5 + (singleSegment ? 0 : 1) + dictionaryBytes + contentBytes;
  for (;;) {
    if (at + 3 > bytes.length) return undefined;
    const header = readLittle(bytes, at, 3);
    const type = (header >> 1) & 3;
    if (type === 3) return undefined;
    // A run-length block has one byte, whatever it unpacks to.
    at += 3 + (type === 1 ? 1 : header >> 3);
    if ((header & 1) === 1) break;
  }
  const end = at + (hasChecksum ? 4 : 0);
  return end > bytes.length ? undefined : end;
}

function readLittle(bytes: Uint8Array, at: number, length: number): number {
  let value = 0;
  for (let i = length - 1; i >= 0; i--) value = value * 256 + (bytes[at + i] ?? 0);
  return value;
}
