/**
 * What a write layer may answer, sector by sector: the value that is surely durable, and those
 * written since, in order. Sectors are filled with the number of the write, so any mix shows.
 */
import assert from 'node:assert/strict';

export const sectorBytes = 512;
/** The number of a write of zeros; 0 is the base. */
const zeroId = 0xffff_ffff;

const zeroSector = Buffer.alloc(sectorBytes);

export interface WriteRecord {
  readonly disk: number;
  readonly firstSector: number;
  readonly sectors: number;
  readonly id: number;
  state: 'flying' | 'answered' | 'failed';
  /** The verifier with which it was answered; 0: it was only seen, after a kill. */
  verifier: bigint;
}

interface SectorHistory {
  /** One of these is on the disk whatever happens. */
  durable: Set<number>;
  since: WriteRecord[];
}

export function fillBase(target: Uint8Array, offset: number, disk: number): void {
  const bytes = Buffer.from(target.buffer, target.byteOffset, target.length);
  for (let at = 0; at < bytes.length;) {
    const sector = Math.floor((offset + at) / sectorBytes);
    at += sectorOf(0, disk, sector).copy(bytes, at, (offset + at) % sectorBytes);
  }
}

export function contentOf(record: WriteRecord): Buffer {
  const bytes = Buffer.alloc(record.sectors * sectorBytes);
  if (record.id === zeroId) return bytes;
  for (let i = 0; i < record.sectors; i++) {
    const sector = record.firstSector + i;
    sectorOf(record.id, record.disk, sector).copy(bytes, i * sectorBytes);
  }
  return bytes;
}

/** The number of the write, the disk and the sector, over and over. */
function sectorOf(id: number, disk: number, sector: number): Buffer {
  const seed = Buffer.alloc(8);
  seed.writeUInt32LE(id, 0);
  seed.writeUInt16LE(disk + 1, 4);
  seed.writeUInt16LE(sector, 6);
  return Buffer.alloc(sectorBytes, seed);
}

function idOf(bytes: Buffer, disk: number, sector: number): number {
  if (bytes.equals(zeroSector)) return zeroId;
  const id = bytes.readUInt32LE(0);
  assert.ok(bytes.equals(sectorOf(id, disk, sector)), `disk ${disk} sector ${sector}: garbage`);
  return id;
}

export class LayerModel {
  readonly #disks: SectorHistory[][];
  #nextId = 1;

  constructor(sectorsOfDisks: readonly number[]) {
    this.#disks = sectorsOfDisks.map((sectors) =>
      Array.from({ length: sectors }, () => ({ durable: new Set([0]), since: [] })),
    );
  }

  /** undefined: another write to one of these sectors is under way. */
  begin(
    disk: number,
    firstSector: number,
    sectors: number,
    zeros: boolean,
  ): WriteRecord | undefined {
    const touched = this.#range(disk, firstSector, sectors);
    if (touched.some(({ since }) => since.some(({ state }) => state === 'flying')))
      return undefined;
    const id = zeros ? zeroId : this.#nextId++;
    const record: WriteRecord = { disk, firstSector, sectors, id, state: 'flying', verifier: 0n };
    for (const sector of touched) sector.since.push(record);
    return record;
  }

  answered(record: WriteRecord, stable: boolean, verifier: bigint): void {
    record.state = 'answered';
    record.verifier = verifier;
    if (!stable) return;
    for (const sector of this.#range(record.disk, record.firstSector, record.sectors)) {
      sector.durable = new Set([record.id]);
      sector.since = sector.since.slice(sector.since.indexOf(record) + 1);
    }
  }

  /** Everything that is answered now; `done` is called when the commit is answered. */
  commit(): { readonly done: () => void } {
    const before = this.#disks.flat().map((sector) => {
      const last = sector.since.findLastIndex(({ state }) => state === 'answered');
      return { sector, covered: sector.since.slice(0, last + 1), rest: sector.since };
    });
    return {
      done: () => {
        for (const { sector, covered, rest } of before) {
          const last = covered.at(-1);
          if (last === undefined || !sector.since.includes(last)) continue;
          // What failed after it may have been made durable as well.
          const failed = rest.slice(covered.length).filter(({ state }) => state === 'failed');
          sector.durable = new Set([last.id, ...failed.map(({ id }) => id)]);
          sector.since = sector.since.slice(sector.since.indexOf(last) + 1);
        }
      },
    };
  }

  unsynced(): boolean {
    return this.#disks.flat().some(({ since }) => since.some(({ state }) => state === 'answered'));
  }

  /**
   * Judges a whole disk. `live`: nothing flies and nothing happened; `kill`: the process died;
   * `cut`: the power went. Answers whether an answered write is gone, and then takes what was
   * read for the state of things.
   */
  judge(disk: number, bytes: Buffer, after: 'live' | 'kill' | 'cut', verifier: bigint): boolean {
    let lost = false;
    for (const [number, sector] of (this.#disks[disk] ?? []).entries()) {
      const at = number * sectorBytes;
      const id = idOf(bytes.subarray(at, at + sectorBytes), disk, number);
      const where = `disk ${disk} sector ${number} holds ${id} after ${after}`;
      const last = sector.since.findLastIndex(({ state }) => state === 'answered');
      const newest = sector.since.slice(Math.max(0, last));
      const allowed = new Set([
        ...(after === 'cut' ? sector.since : newest).map((record) => record.id),
        ...(after === 'cut' || last < 0 ? sector.durable : []),
      ]);
      assert.ok(allowed.has(id), `${where}, allowed: ${[...allowed].join(' ')}`);
      if (last >= 0 && !newest.some((record) => record.id === id)) {
        lost = true;
        assert.notEqual(verifier, sector.since[last]?.verifier, `${where}: lost, same verifier`);
      }
      settle(sector, id, after);
    }
    return lost;
  }

  #range(disk: number, firstSector: number, sectors: number): SectorHistory[] {
    return (this.#disks[disk] ?? []).slice(firstSector, firstSector + sectors);
  }
}

function settle(sector: SectorHistory, id: number, after: string): void {
  if (after === 'cut') {
    sector.durable = new Set([id]);
    sector.since = [];
    return;
  }
  if (after === 'live') return;
  // Still in the kernel's memory: an answered write like any other, unless it was durable.
  const found = sector.since.findLast((record) => record.id === id);
  for (const record of sector.since) {
    if (record.state === 'flying') record.state = 'failed';
  }
  if (found === undefined) {
    sector.since = [];
    return;
  }
  sector.since = sector.since.slice(0, sector.since.lastIndexOf(found) + 1);
  const seen = { ...found, state: 'answered' as const, verifier: 0n };
  if (found.state !== 'answered') sector.since.push(seen);
}
