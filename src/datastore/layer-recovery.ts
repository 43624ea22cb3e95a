/**
 * From the files of a layer to its map: the checkpoint, then the log after it. Every batch names
 * how far the log was durable when it was written. Batches up to the highest such mark must be
 * there: their headers suffice, and a page that rotted is found by its checksum when it is read.
 * Batches after it count only when every byte is as written, and the first that is not ends its
 * segment: it was never acknowledged as stable. Nothing is guessed.
 */
import { RouseError } from '../errors.ts';
import type { Files } from '../lib/files.ts';
import type { NfsTime } from '../nfs/file-system.ts';
import {
  checkpointName,
  newCheckpointName,
  readCheckpoint,
  type Checkpoint,
} from './layer-checkpoint.ts';
import {
  decodeSegmentHeader,
  segmentHeaderUnits,
  unitBytes,
  unitsPerPage,
} from './layer-format.ts';
import { PageMap, zeroFlag, absent } from './page-map.ts';
import {
  batchesOf,
  firstPageUnit,
  pagesIntact,
  unitsOf,
  ReadWindow,
  type FoundBatch,
} from './segment-scan.ts';
import { positionOf, Segment, type Segments } from './segments.ts';
import { spareId } from './spare-files.ts';

export interface Recovered {
  readonly maps: readonly PageMap[];
  /** The last batch found. */
  readonly sequence: number;
  /** Batches up to this one are known to be durable. */
  readonly syncedSequence: number;
  /** Where the batches begin in each segment that are not known to be durable. */
  readonly doubtful: ReadonlyMap<Segment, number>;
  /** When each disk was last written; undefined: never. */
  readonly modified: (NfsTime | undefined)[];
  readonly checkpointBytes: number;
  /** Bytes of log that the checkpoint does not cover. */
  readonly tailBytes: number;
  /** Sentences about what should be there and is not. */
  readonly damage: readonly string[];
}

export async function recoverLayer(
  files: Files,
  directory: string,
  disks: number,
  segments: Segments,
): Promise<Recovered> {
  const damage: string[] = [];
  const names = await files.list(directory);
  if (names.includes(newCheckpointName)) await files.remove(`${directory}/${newCheckpointName}`);
  await openSegments(files, directory, names, segments);
  const newMaps = () => Array.from({ length: disks }, () => new PageMap());
  let maps = newMaps();
  const checkpoint = await readCheckpoint(files, `${directory}/${checkpointName}`, maps, (text) =>
    damage.push(text),
  );
  if (checkpoint === undefined) maps = newMaps();
  const tail = await scanTail(segments, checkpoint);
  const synced = Math.max(checkpoint?.sequence ?? 0, tail.syncedSequence);
  const modified = maps.map((_, disk) => checkpoint?.disks[disk]?.modified);
  const doubtful = new Map<Segment, number>();
  let sequence = Math.max(checkpoint?.sequence ?? 0, tail.syncedSequence);
  for (const found of await acceptedBatches(tail.batches, synced)) {
    applyBatch(found, maps, modified);
    sequence = Math.max(sequence, found.batch.sequence);
    found.segment.lastSequence = found.batch.sequence;
    found.segment.endUnits = found.unit + unitsOf(found);
    if (found.batch.sequence <= synced) continue;
    segments.unsynced.add(found.segment);
    if (!doubtful.has(found.segment)) doubtful.set(found.segment, found.unit);
  }
  damage.push(...tail.damage);
  await cutLeftovers(segments);
  // What is missing now is no damage when it is still missing the next time.
  segments.afterFailure = tail.batches.length > 0;
  // Nor is it known whether the names of these segments were synced before the process died.
  segments.namesUnsynced = tail.batches.length > 0;
  countLive(maps, segments, damage);
  // What superseded the pages of a dead segment may not be durable yet.
  for (const segment of segments.all()) segment.deadSince = sequence;
  return {
    maps,
    sequence,
    syncedSequence: synced,
    doubtful,
    modified,
    checkpointBytes: checkpoint?.sizeBytes ?? 0,
    tailBytes: tail.bytes,
    damage,
  };
}

/**
 * Removes what follows the last batch that counts, and segments without any. A torn batch left in place would be taken for
 * a durable one as soon as the durable mark, which counts on from here, passes its number.
 */
async function cutLeftovers(segments: Segments): Promise<void> {
  for (const segment of segments.all()) {
    if (segment.damaged) continue;
    // Prepared and never used, or removed before and back after a power cut.
    if (segment.lastSequence === 0) {
      await segments.remove(segment);
      continue;
    }
    const endBytes = segment.endUnits * unitBytes;
    if ((await segment.file.size()) <= endBytes) continue;
    await segment.file.truncate(endBytes);
    await segment.file.sync();
  }
}

async function openSegments(
  files: Files,
  directory: string,
  names: readonly string[],
  segments: Segments,
): Promise<void> {
  for (const name of names.toSorted()) {
    const spare = spareId(name);
    if (spare !== undefined) {
      segments.skipId(spare);
      await files.remove(`${directory}/${name}`);
    }
    const match = /^segment-(\d{12})$/.exec(name);
    if (match === null) continue;
    segments.skipId(Number(match[1]));
    const path = `${directory}/${name}`;
    const file = await files.open(path, 'write');
    const bytes = Buffer.alloc(segmentHeaderUnits * unitBytes);
    const length = await file.read(bytes, 0);
    const header = decodeSegmentHeader(bytes.subarray(0, length));
    if (header === 'newer') {
      throw new RouseError('newer-format', `${path} was written by a newer Rouse`);
    }
    if (header === 'bad' || (header !== 'empty' && header.id !== Number(match[1]))) {
      throw new RouseError('corrupt-data', `${path}: the header of this segment is damaged`, {
        advice: 'Restore this file; without it the writes of the clone are incomplete.',
      });
    }
    if (header === 'empty') {
      await file.close();
      await files.remove(path);
      continue;
    }
    const replaced = segments.adopt(new Segment(header, path, file, segmentHeaderUnits));
    if (replaced !== undefined) {
      await replaced.file.close();
      await files.remove(replaced.path);
    }
  }
}

interface Tail {
  readonly batches: readonly FoundBatch[];
  readonly syncedSequence: number;
  readonly bytes: number;
  readonly damage: readonly string[];
}

interface SegmentEnd {
  readonly segment: Segment;
  /** Its last batch; 0: none. */
  readonly last: number;
  /** The checkpoint knows its first batches. */
  readonly covered: boolean;
}

/** Headers of all batches that the checkpoint does not cover, in the order of their writing. */
async function scanTail(segments: Segments, checkpoint: Checkpoint | undefined): Promise<Tail> {
  const covered = new Map(checkpoint?.segments.map((segment) => [segment.id, segment]));
  const ordered = segments.all().sort((a, b) => a.header.id - b.header.id);
  const batches: FoundBatch[] = [];
  let syncedSequence = 0;
  let bytes = 0;
  for (const segment of ordered) {
    const known = covered.get(segment.header.id);
    const start = known?.endUnits ?? segmentHeaderUnits;
    segment.endUnits = start;
    segment.lastSequence = known?.lastSequence ?? 0;
    // What the checkpoint counts, it knows the place of. Anything else of such a number is what a
    // failed append left, or lies in a segment whose removal a power cut took back.
    let last = Math.max(segment.lastSequence, checkpoint?.sequence ?? 0);
    for await (const found of batchesOf(segment, start)) {
      if (found.batch.sequence <= last) break;
      dropLeftovers(batches, found);
      batches.push(found);
      last = found.batch.sequence;
      syncedSequence = Math.max(syncedSequence, found.batch.syncedSequence);
      bytes += unitsOf(found) * unitBytes;
    }
  }
  const ends = ordered.map((segment): SegmentEnd => {
    const end = batches.findLast((found) => found.segment === segment);
    const last = end?.batch.sequence ?? segment.lastSequence;
    return { segment, last, covered: covered.has(segment.header.id) };
  });
  return { batches, syncedSequence, bytes, damage: gapsIn(ends, batches, syncedSequence) };
}

/**
 * Segments are filled one after the other, so numbers only grow. A batch at the end of a segment
 * whose number comes again in a later one is what a failed append left behind.
 */
function dropLeftovers(batches: FoundBatch[], next: FoundBatch): void {
  for (let last = batches.at(-1); last !== undefined; last = batches.at(-1)) {
    if (last.segment === next.segment || last.batch.sequence < next.batch.sequence) return;
    batches.pop();
  }
}

/**
 * Batches are numbered without gaps over all segments. A segment that ends before the next one
 * begins, below the durable mark, has lost headers to the disk; unless a power cut or a failed
 * sync explains it, which a later segment then says.
 */
function gapsIn(
  ends: readonly SegmentEnd[],
  batches: readonly FoundBatch[],
  syncedSequence: number,
): string[] {
  const damage: string[] = [];
  const explained = ends.findLastIndex(({ segment }) => segment.header.afterFailure);
  const firstOf = new Map<Segment, number>();
  for (const { segment, batch } of batches) {
    if (!firstOf.has(segment)) firstOf.set(segment, batch.sequence);
  }
  for (const [i, { segment, covered }] of ends.entries()) {
    const before = ends[i - 1];
    const first = firstOf.get(segment);
    if (before === undefined || first === undefined || before.last === 0) continue;
    if (covered) continue;
    // Those between have been removed, because nothing lived in them.
    if (segment.header.id !== before.segment.header.id + 1) continue;
    const expected = before.last + 1;
    if (i <= explained || first <= expected || expected > syncedSequence) continue;
    before.segment.damaged = true;
    damage.push(`${before.segment.path}: writes ${expected} to ${first - 1} are damaged`);
  }
  return damage;
}

/** Those known to be durable, and of the rest of each segment the part that is whole. */
async function acceptedBatches(
  batches: readonly FoundBatch[],
  syncedSequence: number,
): Promise<FoundBatch[]> {
  const accepted: FoundBatch[] = [];
  const torn = new Set<Segment>();
  let window: ReadWindow | undefined;
  let windowOf: Segment | undefined;
  for (const found of batches) {
    if (torn.has(found.segment)) continue;
    if (found.batch.sequence > syncedSequence) {
      if (window === undefined || windowOf !== found.segment) {
        window = new ReadWindow(found.segment.file);
        windowOf = found.segment;
      }
      if (!(await pagesIntact(found, window))) {
        torn.add(found.segment);
        continue;
      }
    }
    accepted.push(found);
  }
  return accepted;
}

function applyBatch(
  found: FoundBatch,
  maps: readonly PageMap[],
  modified: (NfsTime | undefined)[],
): void {
  const { slot } = found.segment.header;
  const zeros = (zeroFlag | positionOf(slot, found.unit)) >>> 0;
  let position = positionOf(slot, firstPageUnit(found));
  let withBytes = 0;
  for (const { disk, firstPage, pages, zero } of found.batch.extents) {
    const map = maps[disk];
    for (let page = firstPage; page < firstPage + pages; page++) {
      if (zero) {
        map?.set(page, zeros, 0);
      } else {
        map?.set(page, position, found.batch.checksums[withBytes++] ?? 0);
        position += unitsPerPage;
      }
    }
    modified[disk] = found.batch.time;
  }
}

/** Counts what lives in each segment, and finds pages whose segment is gone. */
function countLive(maps: readonly PageMap[], segments: Segments, damage: string[]): void {
  let missing = 0;
  for (const map of maps) {
    for (const group of map.groups()) {
      const first = map.find(group * 16);
      for (let index = first; index < first + 16; index++) {
        const position = map.positionAt(index);
        if (position === absent) continue;
        const segment = segments.at(position);
        if (segment === undefined) missing++;
        else if (position >= zeroFlag) segment.liveZeros++;
        else segment.livePages++;
      }
    }
  }
  if (missing > 0) damage.push(`${missing} written pages lie in segments that are missing`);
}
