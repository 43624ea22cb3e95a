import { RouseError } from '../errors.ts';
import { checksum } from './checksum.ts';
import { codecByNumber, codecOf, codecs, type CodecName } from './codecs.ts';
import { idBytes, isIdAt } from './hash.ts';

/**
 * One block as it lies in a pack (docs/format.md, "Records"). Little-endian:
 *
 *   0  u64  XXH3 of everything after it, header and payload
 *   8  u32  bytes of the payload
 *  12  u32  bytes of the block
 *  16  u8   codec: 0 raw, 1 lz4, 2 zstd
 *  17  u8   cipher: 0 none
 *  18  u16  0x4252, "RB"
 *  20  u32  zero
 *  24  32   id of the block
 *  56       payload, then zeros up to a multiple of 8
 */
export const recordHeaderBytes = 56;
const recordMark = 0x4252;
const recordAlignment = 8;

/** What a record of such a payload takes in a pack. */
export function recordBytes(payloadBytes: number): number {
  return Math.ceil((recordHeaderBytes + payloadBytes) / recordAlignment) * recordAlignment;
}

/** The most a block of `blockBytes` can take: raw. */
export function recordBytesMax(blockBytes: number): number {
  return recordBytes(blockBytes);
}

/** One part in 32 must be saved, or reading raw is the better deal. */
const worthwhileFraction = 31 / 32;

/**
 * Writes the record of a block at the start of `target` (at least `recordBytesMax`); answers its
 * length in the pack.
 */
export function encodeRecord(
  target: Buffer,
  id: Uint8Array,
  plain: Uint8Array,
  codec: CodecName,
): number {
  const room = Math.floor(plain.length * worthwhileFraction);
  const packed = codecOf(codec).compress(
    plain,
    target.subarray(recordHeaderBytes, recordHeaderBytes + room),
  );
  const payloadBytes = packed > 0 ? packed : plain.length;
  if (packed <= 0) target.set(plain, recordHeaderBytes);
  target.writeUInt32LE(payloadBytes, 8);
  target.writeUInt32LE(plain.length, 12);
  target[16] = packed > 0 ? codecs[codec] : codecs.raw;
  target[17] = 0;
  target.writeUInt16LE(recordMark, 18);
  target.writeUInt32LE(0, 20);
  target.set(id, 24);
  const end = recordHeaderBytes + payloadBytes;
  const length = recordBytes(payloadBytes);
  for (let at = end; at < length; at++) target[at] = 0;
  target.writeBigUInt64LE(checksum(target.subarray(8, end)), 0);
  return length;
}

/** Where a record was read, for messages. */
export interface RecordPlace {
  readonly pack: string;
  readonly offset: number;
}

export function corruptRecord(place: RecordPlace, what: string): RouseError {
  return new RouseError(
    'corrupt-data',
    `pack ${place.pack} is damaged at offset ${place.offset}: ${what}`,
    {
      advice: 'Run "rouse vault verify" to see which savesets need this block.',
      details: { pack: place.pack, offset: place.offset },
    },
  );
}

/**
 * Checks the record at the start of `bytes` (what follows it is ignored) and unpacks the block
 * with this id into `target`, at least its first `need` bytes. Answers how many bytes of the block
 * `target` holds now, or what is wrong. Total: any bytes will do.
 */
export function decodeRecord(
  bytes: Buffer,
  id: Uint8Array | undefined,
  target: Uint8Array,
  need: number = target.length,
): number | string {
  const problem = checkRecord(bytes);
  if (problem !== undefined) return problem;
  if (id !== undefined && !isIdAt(bytes, 24, id)) return 'it holds another block';
  const plainBytes = bytes.readUInt32LE(12);
  if (plainBytes !== target.length)
    return `its block has ${plainBytes} bytes instead of ${target.length}`;
  const codec = codecByNumber(bytes[16] ?? 0);
  if (codec === undefined) return `its codec ${bytes[16]} is unknown`;
  if (bytes[17] !== 0) return `its cipher ${bytes[17]} is unknown`;
  const payload = bytes.subarray(recordHeaderBytes, recordHeaderBytes + bytes.readUInt32LE(8));
  const isPart = codec.decompressPart !== undefined && need < target.length;
  const good = isPart
    ? codec.decompressPart?.(payload, target, need)
    : codec.decompress(payload, target);
  if (good !== true) return 'its block cannot be unpacked';
  return isPart ? need : target.length;
}

/** Checks all that can be checked without unpacking. */
export function checkRecord(bytes: Buffer): string | undefined {
  if (bytes.length < recordHeaderBytes) return 'it is cut short';
  if (bytes.readUInt16LE(18) !== recordMark) return 'there is no record';
  const end = recordHeaderBytes + bytes.readUInt32LE(8);
  if (end > bytes.length) return 'it is cut short';
  sum[0] = checksum(bytes.subarray(8, end));
  const isRight = sumWords[0] === bytes.readUInt32LE(0) && sumWords[1] === bytes.readUInt32LE(4);
  return isRight ? undefined : 'its checksum is wrong';
}

/** One checksum as two words: `readBigUInt64LE` makes four numbers of arbitrary size on its way. */
const sum = new BigUint64Array(1);
const sumWords = new Uint32Array(sum.buffer);

/** The id and the whole length of a record that passed `checkRecord`. */
export function recordFacts(bytes: Buffer): { id: Buffer; length: number; plainBytes: number } {
  return {
    id: Buffer.from(bytes.subarray(24, 24 + idBytes)),
    length: recordBytes(bytes.readUInt32LE(8)),
    plainBytes: bytes.readUInt32LE(12),
  };
}
