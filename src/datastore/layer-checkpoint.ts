/**
 * The map of a layer on disk, so that opening it reads what was written since, not everything. A
 * checkpoint only saves time: the log alone rebuilds the map. It is written beside the old one and
 * renamed once the log is durable up to its sequence.
 *
 * Format: 32 bytes (magic, crc of the rest, version, length of the description), the description
 * as JSON, then chunks of (length, crc seeded with that of the header, groups of 16 pages: number, positions, checksums).
 */
import { crc32 } from 'node:zlib';
import { RouseError } from '../errors.ts';
import type { Files, OpenFile } from '../lib/files.ts';
import type { NfsTime } from '../nfs/file-system.ts';
import { absent, pagesPerGroup, type PageMap, type PageMapView } from './page-map.ts';

const magic = 0x50434c52; // 'RLCP'
const version = 1;
const headerBytes = 32;
const groupBytes = 4 + 8 * pagesPerGroup;
const chunkGroupsMax = 4096;
const descriptionBytesMax = 16 * 1024 * 1024;

export interface CheckpointSegment {
  readonly id: number;
  readonly slot: number;
  /** Batches before this unit are in the map. */
  readonly endUnits: number;
  readonly lastSequence: number;
}

export interface Checkpoint {
  readonly sequence: number;
  readonly segments: readonly CheckpointSegment[];
  readonly disks: readonly { readonly groups: number; readonly modified: NfsTime }[];
}

export const checkpointName = 'checkpoint';
export const newCheckpointName = 'checkpoint.new';

/** Writes and syncs the file, not its name. Answers its size. */
export async function writeCheckpoint(
  files: Files,
  path: string,
  checkpoint: Omit<Checkpoint, 'disks'> & { readonly modified: readonly NfsTime[] },
  maps: readonly PageMapView[],
): Promise<number> {
  const groups = maps.map((map) => map.groups());
  const description = Buffer.from(
    JSON.stringify({
      sequence: checkpoint.sequence,
      segments: checkpoint.segments,
      disks: groups.map((list, disk) => ({
        groups: list.length,
        modified: checkpoint.modified[disk] ?? { seconds: 0, nanoseconds: 0 },
      })),
    }),
  );
  const file = await files.open(path, 'write');
  try {
    await file.truncate(0);
    const header = Buffer.alloc(headerBytes);
    header.writeUInt32LE(magic, 0);
    header.writeUInt32LE(version, 8);
    header.writeUInt32LE(description.length, 12);
    header.writeUInt32LE(crc32(description, crc32(header.subarray(8))), 4);
    await file.write([header, description], 0);
    let position = headerBytes + description.length;
    for (const [disk, map] of maps.entries()) {
      const list = groups[disk] ?? new Float64Array();
      position = await writeGroups(file, position, map, list, header.readUInt32LE(4));
    }
    await file.sync();
    return position;
  } finally {
    await file.close();
  }
}

async function writeGroups(
  file: OpenFile,
  start: number,
  map: PageMapView,
  groups: Float64Array,
  seed: number,
): Promise<number> {
  let position = start;
  for (let from = 0; from < groups.length; from += chunkGroupsMax) {
    const part = groups.subarray(from, from + chunkGroupsMax);
    const bytes = Buffer.allocUnsafe(8 + part.length * groupBytes);
    let at = 8;
    for (const group of part) {
      at = bytes.writeUInt32LE(group, at);
      const first = map.find(group * pagesPerGroup);
      for (let i = 0; i < pagesPerGroup; i++) {
        at = bytes.writeUInt32LE(map.positionAt(first + i), at);
        at = bytes.writeUInt32LE(map.checksumAt(first + i), at);
      }
    }
    bytes.writeUInt32LE(part.length, 0);
    bytes.writeUInt32LE(crc32(bytes.subarray(8), seed), 4);
    await file.write([bytes], position);
    position += bytes.length;
  }
  return position;
}

/**
 * Fills `maps` and answers the description; undefined when there is no checkpoint, or none that is
 * whole (`onBad` is then told; `maps` may hold part of it).
 */
export async function readCheckpoint(
  files: Files,
  path: string,
  maps: readonly PageMap[],
  onBad: (message: string) => void,
): Promise<(Checkpoint & { readonly sizeBytes: number }) | undefined> {
  if ((await files.stat(path)) === undefined) return undefined;
  const file = await files.open(path, 'read');
  try {
    const header = await readDescription(file, path);
    if (header === undefined || header.checkpoint.disks.length !== maps.length) {
      onBad(`${path}: the checkpoint is damaged; the log is read instead`);
      return undefined;
    }
    let position = header.end;
    for (const [disk, { groups }] of header.checkpoint.disks.entries()) {
      const map = maps[disk];
      const next = map && (await readGroups(file, position, groups, map, header.seed));
      if (next === undefined) {
        onBad(`${path}: the checkpoint is damaged; the log is read instead`);
        return undefined;
      }
      position = next;
    }
    return { ...header.checkpoint, sizeBytes: position };
  } finally {
    await file.close();
  }
}

async function readDescription(
  file: OpenFile,
  path: string,
): Promise<{ checkpoint: Checkpoint; end: number; seed: number } | undefined> {
  const header = Buffer.alloc(headerBytes);
  if ((await file.read(header, 0)) < headerBytes) return undefined;
  const length = header.readUInt32LE(12);
  if (header.readUInt32LE(0) !== magic || length > descriptionBytesMax) return undefined;
  if (length > (await file.size())) return undefined;
  const description = Buffer.alloc(length);
  if ((await file.read(description, headerBytes)) < length) return undefined;
  const expected = crc32(description, crc32(header.subarray(8)));
  if (header.readUInt32LE(4) !== expected) return undefined;
  if (header.readUInt32LE(8) !== version) {
    throw new RouseError('newer-format', `${path} was written by a newer Rouse`);
  }
  // The checksum vouches for the shape: only `writeCheckpoint` of this version writes it.
  const checkpoint = JSON.parse(description.toString()) as Checkpoint;
  return { checkpoint, end: headerBytes + length, seed: expected };
}

async function readGroups(
  file: OpenFile,
  start: number,
  groups: number,
  map: PageMap,
  seed: number,
): Promise<number | undefined> {
  let position = start;
  for (let left = groups; left > 0;) {
    const expected = Math.min(left, chunkGroupsMax);
    const bytes = Buffer.allocUnsafe(8 + expected * groupBytes);
    if ((await file.read(bytes, position)) < bytes.length) return undefined;
    if (bytes.readUInt32LE(0) !== expected) return undefined;
    if (bytes.readUInt32LE(4) !== crc32(bytes.subarray(8), seed)) return undefined;
    for (let i = 0; i < expected; i++) addGroup(bytes, 8 + i * groupBytes, map);
    position += bytes.length;
    left -= expected;
  }
  return position;
}

function addGroup(bytes: Buffer, start: number, map: PageMap): void {
  const firstPage = bytes.readUInt32LE(start) * pagesPerGroup;
  for (let i = 0; i < pagesPerGroup; i++) {
    const at = start + 4 + 8 * i;
    const entry = bytes.readUInt32LE(at);
    if (entry !== absent) map.set(firstPage + i, entry, bytes.readUInt32LE(at + 4));
  }
}
