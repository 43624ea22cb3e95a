/** Copies what still lives in a segment to the end of the log, so that the segment can go. */
import { crc32 } from 'node:zlib';
import { setImmediate } from 'node:timers/promises';
import { isRouseError } from '../errors.ts';
import { isPromise, type MaybePromise } from '../lib/maybe-promise.ts';
import type { Move } from './appender.ts';
import { pageBytes, unitBytes, unitsPerPage } from './layer-format.ts';
import { zeroFlag, type PageMap } from './page-map.ts';
import { batchesOf, firstPageUnit, unitsOf, type FoundBatch } from './segment-scan.ts';
import { positionOf, type Segment } from './segments.ts';

/** Pages copied in one append: about 0.2 ms. */
const movePagesMax = 64;

/**
 * From `fromUnit` on. Pages that cannot be read as they were written stay where they are: answers
 * how many, where a header that cannot be read counts as one.
 */
export async function cleanSegment(
  segment: Segment,
  fromUnit: number,
  maps: readonly PageMap[],
  append: (moves: readonly Move[]) => Promise<void>,
): Promise<number> {
  let lost = 0;
  let next = fromUnit;
  // Gathered over many batches: of a batch that one turn of the guest made, few pages live.
  const bytes = Buffer.allocUnsafeSlow(movePagesMax * pageBytes);
  let moves: Move[] = [];
  segment.readers++;
  try {
    for await (const found of batchesOf(segment, fromUnit, segment.endUnits)) {
      next = found.unit + unitsOf(found);
      for (const page of livePages(found, maps)) {
        const at = moves.length * pageBytes;
        const reading = readMove(segment, page, bytes.subarray(at, at + pageBytes));
        const move = isPromise(reading) ? await reading : reading;
        if (move === undefined) lost++;
        else moves.push(move);
        if (moves.length < movePagesMax) continue;
        await append(moves);
        moves = [];
      }
      // The guest's reads and writes go first. No faster than batch by batch, one in a turn: while
      // garbage waits, more of what is around it is overwritten and need not be copied.
      await setImmediate();
    }
    if (moves.length > 0) await append(moves);
  } finally {
    segment.readers--;
  }
  return next < segment.endUnits ? lost + 1 : lost;
}

interface LivePage {
  readonly disk: number;
  readonly page: number;
  readonly from: number;
  /** -1: zeros. */
  readonly bytePosition: number;
  readonly checksum: number;
}

function livePages(found: FoundBatch, maps: readonly PageMap[]): LivePage[] {
  const live: LivePage[] = [];
  const { slot } = found.segment.header;
  const zeros = (zeroFlag | positionOf(slot, found.unit)) >>> 0;
  let unit = firstPageUnit(found);
  let withBytes = 0;
  for (const { disk, firstPage, pages, zero } of found.batch.extents) {
    const map = maps[disk];
    for (let page = firstPage; page < firstPage + pages; page++) {
      const from = zero ? zeros : positionOf(slot, unit);
      const checksum = zero ? 0 : (found.batch.checksums[withBytes++] ?? 0);
      const bytePosition = zero ? -1 : unit * unitBytes;
      if (!zero) unit += unitsPerPage;
      const index = map?.find(page) ?? -1;
      if (index < 0 || map?.positionAt(index) !== from) continue;
      live.push({ disk, page, from, bytePosition, checksum });
    }
  }
  return live;
}

function readMove(segment: Segment, live: LivePage, data: Buffer): MaybePromise<Move | undefined> {
  const { disk, page, from, bytePosition, checksum } = live;
  if (bytePosition < 0) return { disk, page, from, data: undefined, checksum };
  if (segment.file.readNow(data, bytePosition) !== pageBytes) return readLater(segment, live, data);
  return crc32(data) === checksum ? { disk, page, from, data, checksum } : undefined;
}

async function readLater(
  segment: Segment,
  { disk, page, from, bytePosition, checksum }: LivePage,
  data: Buffer,
): Promise<Move | undefined> {
  try {
    if ((await segment.file.read(data, bytePosition)) !== pageBytes) return undefined;
  } catch (error) {
    if (isRouseError(error, 'io-error')) return undefined;
    throw error;
  }
  return crc32(data) === checksum ? { disk, page, from, data, checksum } : undefined;
}
