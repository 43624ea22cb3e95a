import { RouseError } from '../errors.ts';
import type { BlobReader } from '../blobs/port.ts';
import { idBytes, type HashBlock } from './hash.ts';
import { checkRecord, recordBytesMax, recordFacts, recordHeaderBytes } from './record.ts';

/**
 * A pack: header, records, table, footer (docs/format.md, "Packs"). Written once; named by the
 * keyed BLAKE3 of its table and of the footer's first half. The table names every block by its
 * hash, so the name commits to the content.
 *
 * Header, 32 bytes: "RousePck", u32 version, u32 block bytes, 16 bytes of the vault's id.
 * Table, 40 bytes an entry: id, u32 offset, u32 length of the record, in the order of records.
 * Footer, 64 bytes: u32 version, u32 entries, u64 offset of the table, 8 zeros, "RousePkE", and 32
 * bytes: the pack's name.
 */
export const packHeaderBytes = 32;
export const packEntryBytes = 40;
export const packFooterBytes = 64;
const headMark = Buffer.from('RousePck');
const endMark = Buffer.from('RousePkE');
const packVersion = 1;
const named = 32;

export interface PackShape {
  readonly blockBytes: number;
  readonly vaultId: Buffer;
  readonly hash: HashBlock;
}

export interface PackEntry {
  readonly id: Buffer;
  readonly offset: number;
  readonly length: number;
}

export function encodePackHeader(target: Buffer, shape: PackShape): void {
  target.set(headMark, 0);
  target.writeUInt32LE(packVersion, 8);
  target.writeUInt32LE(shape.blockBytes, 12);
  target.set(shape.vaultId.subarray(0, 16), 16);
}

/** Table and footer for a pack whose records end at `tableOffset`, and the pack's name. */
export function encodePackEnd(
  entries: readonly PackEntry[],
  tableOffset: number,
  hash: HashBlock,
): { end: Buffer; name: string } {
  const end = Buffer.alloc(entries.length * packEntryBytes + packFooterBytes);
  entries.forEach((entry, i) => {
    const at = i * packEntryBytes;
    end.set(entry.id, at);
    end.writeUInt32LE(entry.offset, at + idBytes);
    end.writeUInt32LE(entry.length, at + idBytes + 4);
  });
  const at = entries.length * packEntryBytes;
  end.writeUInt32LE(packVersion, at);
  end.writeUInt32LE(entries.length, at + 4);
  end.writeBigUInt64LE(BigInt(tableOffset), at + 8);
  end.set(endMark, at + 24);
  const digest = hash(end.subarray(0, at + named));
  end.set(digest, at + named);
  return { end, name: digest.toString('hex') };
}

/** The table of a pack, checked against the pack's size and name; `corrupt-data` otherwise. */
export async function readPackTable(
  name: string,
  reader: BlobReader,
  shape: PackShape,
): Promise<PackEntry[]> {
  const size = reader.sizeBytes;
  if (size < packHeaderBytes + packFooterBytes) throw badPack(name, 'it is too short');
  const header = Buffer.alloc(packHeaderBytes);
  await reader.read(header, 0);
  checkHeader(name, header, shape);
  const footer = Buffer.alloc(packFooterBytes);
  await reader.read(footer, size - packFooterBytes);
  if (!footer.subarray(24, 32).equals(endMark)) throw badPack(name, 'its end is missing');
  checkVersion(name, footer.readUInt32LE(0));
  const count = footer.readUInt32LE(4);
  const tableOffset = Number(footer.readBigUInt64LE(8));
  if (tableOffset + count * packEntryBytes + packFooterBytes !== size)
    throw badPack(name, 'its table does not fit its size');
  const table = Buffer.allocUnsafe(count * packEntryBytes + named);
  await reader.read(table, tableOffset);
  const digest = shape.hash(table);
  if (!digest.equals(footer.subarray(named)) || digest.toString('hex') !== name)
    throw badPack(name, 'its table does not match its name');
  return decodeEntries(name, table, count, tableOffset);
}

function decodeEntries(name: string, table: Buffer, count: number, end: number): PackEntry[] {
  const entries: PackEntry[] = [];
  for (let i = 0; i < count; i++) {
    const at = i * packEntryBytes;
    const offset = table.readUInt32LE(at + idBytes);
    const length = table.readUInt32LE(at + idBytes + 4);
    if (offset < packHeaderBytes || offset + length > end || offset % 8 !== 0)
      throw badPack(name, `entry ${i} of its table points outside`);
    entries.push({ id: Buffer.from(table.subarray(at, at + idBytes)), offset, length });
  }
  return entries;
}

function checkHeader(name: string, header: Buffer, shape: PackShape): void {
  if (!header.subarray(0, 8).equals(headMark)) throw badPack(name, 'its beginning is missing');
  checkVersion(name, header.readUInt32LE(8));
  if (header.readUInt32LE(12) !== shape.blockBytes)
    throw badPack(name, `its blocks have ${header.readUInt32LE(12)} bytes`);
  if (!header.subarray(16, 32).equals(shape.vaultId.subarray(0, 16)))
    throw badPack(name, 'it belongs to another vault');
}

function checkVersion(name: string, version: number): void {
  if (version > packVersion)
    throw new RouseError('newer-format', `pack ${name} has format ${version}`);
}

function badPack(name: string, what: string): RouseError {
  return new RouseError('corrupt-data', `pack ${name} is damaged: ${what}`, {
    advice: 'Run "rouse vault verify" to see which savesets it hurts.',
    details: { pack: name },
  });
}

/** A buffer this long holds any record; reading ahead of it costs one read for dozens of them. */
const salvageBytes = 4 * 1024 * 1024;

/**
 * The good records of a pack whose table is lost, found by walking over its bytes. Where a record
 * is bad, the next good one is searched at the next multiple of 8.
 */
export async function salvagePack(reader: BlobReader, shape: PackShape): Promise<PackEntry[]> {
  const entries: PackEntry[] = [];
  const most = recordBytesMax(shape.blockBytes);
  let position = packHeaderBytes;
  while (position + recordHeaderBytes <= reader.sizeBytes) {
    const bytes = Buffer.allocUnsafe(Math.min(salvageBytes, reader.sizeBytes - position));
    await reader.read(bytes, position);
    const isLast = position + bytes.length === reader.sizeBytes;
    const end = isLast ? bytes.length - recordHeaderBytes + 1 : bytes.length - most + 1;
    let at = 0;
    while (at < end) {
      const record = bytes.subarray(at, at + most);
      if (checkRecord(record) !== undefined) {
        at += 8;
        continue;
      }
      const facts = recordFacts(record);
      if (facts.plainBytes === shape.blockBytes)
        entries.push({ id: facts.id, offset: position + at, length: facts.length });
      at += facts.length;
    }
    if (isLast) break;
    position += at;
  }
  return entries;
}
