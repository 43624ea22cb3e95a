import { nfsLimits } from '../limits.ts';
import type { ExportTable } from './exports.ts';

/**
 * Which WRITEs came lately, over which connection: a client that lost its connection sends what was
 * not answered again over a new one, and bytes that still waited on the old one must not run after
 * that, or they would undo what was written since. So of two connections that carried the same
 * WRITE the older one is dead: it is ended, and nothing that waits on it runs. While the first run of
 * a WRITE lasts, its repetition waits, and then runs again: that does no harm, because the client
 * writes nothing newer to the place before it has an answer.
 *
 * No answer is kept, and no WRITE goes unanswered on a live connection: taking two WRITEs for the
 * same one by mistake costs a client no more than a reconnect. Notes are bounded; when some were
 * given up, connections that were silent since before are not trusted with writes any more.
 */

/** The call came over a connection that a newer one has replaced. */
export const REPLACED = -1;

const WAYS = 8;

export class RecentWrites {
  readonly #table: ExportTable;
  readonly #endConnection: (serial: number) => void;
  readonly #buckets: number;
  readonly #xids: Uint32Array;
  readonly #marks: Uint32Array;
  readonly #exports: Uint32Array;
  /** The newest connection that carried it; 0: no note. */
  readonly #serials: Uint32Array;
  /** Runs that have not ended. */
  readonly #running: Uint16Array;
  /** The note of each bucket that is given up next. */
  readonly #next: Uint8Array;
  readonly #waiting = new Map<number, (() => void)[]>();

  /** `notes`: a power of two, at least 8. `endConnection` ends the one with this serial, if open. */
  constructor(
    table: ExportTable,
    endConnection: (serial: number) => void,
    notes: number = nfsLimits.writeNotesMax,
  ) {
    this.#table = table;
    this.#endConnection = endConnection;
    this.#buckets = notes / WAYS;
    // One place more than there are notes: for a run that found none free.
    this.#xids = new Uint32Array(notes + 1);
    this.#marks = new Uint32Array(notes + 1);
    this.#exports = new Uint32Array(notes + 1);
    this.#serials = new Uint32Array(notes + 1);
    this.#running = new Uint16Array(notes + 1);
    this.#next = new Uint8Array(this.#buckets);
  }

  /**
   * A place from 0: run the WRITE, between `started` and `ended` when it takes time. `REPLACED`: do
   * not. Below that: wait for `over` of it, then begin again. `mark` stands for address and call.
   */
  begin(serial: number, exportId: number, xid: number, mark: number): number {
    const bucket = xid & (this.#buckets - 1);
    const base = bucket * WAYS;
    for (let at = base; at < base + WAYS; at++) {
      if (this.#xids[at] !== xid || this.#marks[at] !== mark) continue;
      const other = this.#serials[at] as number;
      if (this.#exports[at] !== exportId || other === 0) continue;
      if (other > serial) return REPLACED;
      this.#serials[at] = serial;
      if (other < serial) this.#endConnection(other);
      return this.#running[at] === 0 ? at : -2 - at;
    }
    const at = this.#free(bucket, exportId, serial);
    this.#xids[at] = xid;
    this.#marks[at] = mark;
    this.#exports[at] = exportId;
    this.#serials[at] = serial;
    return at;
  }

  started(place: number): void {
    (this.#running[place] as number)++;
  }

  ended(place: number): void {
    const left = --(this.#running[place] as number);
    if (left > 0 || this.#waiting.size === 0) return;
    const waiting = this.#waiting.get(place);
    this.#waiting.delete(place);
    for (const resume of waiting ?? []) resume();
  }

  /** Resolves when the run ends that `begin` told to wait for. */
  over(wait: number): Promise<void> {
    const place = -2 - wait;
    return new Promise((resolve) => {
      const waiting = this.#waiting.get(place);
      if (waiting === undefined) this.#waiting.set(place, [resolve]);
      else waiting.push(resolve);
    });
  }

  /** The oldest note of the bucket whose run has ended. */
  #free(bucket: number, exportId: number, serial: number): number {
    const first = this.#next[bucket] as number;
    for (let step = 0; step < WAYS; step++) {
      const way = (first + step) % WAYS;
      const at = bucket * WAYS + way;
      if (this.#running[at] !== 0) continue;
      this.#next[bucket] = (way + 1) % WAYS;
      const given = this.#serials[at] as number;
      if (given !== 0) this.#giveUp(this.#exports[at] as number, given);
      return at;
    }
    this.#giveUp(exportId, serial);
    return this.#xids.length - 1;
  }

  /** From now on, who was silent since before that connection may bring what it brought. */
  #giveUp(exportId: number, serial: number): void {
    const from = this.#table.byId(exportId);
    if (from !== undefined && from.forgottenSerial < serial) from.forgottenSerial = serial;
  }
}

/**
 * What a WRITE is known by beside its xid: who, where, and 32 words of its data spread over all of
 * it. Reading every byte would cost what a tenth of the whole call costs.
 */
export function writeMark(
  seed: number,
  file: number,
  offset: number,
  view: DataView,
  at: number,
  bytes: number,
): number {
  let mark = Math.imul(seed ^ (file | 0), 0x9e37_79b1);
  mark = mix(mark, offset | 0);
  mark = mix(mark, Math.floor(offset / 0x1_0000_0000));
  mark = mix(mark, bytes);
  const step = bytes > 128 ? (bytes >>> 7) << 2 : 4;
  for (let place = 0; place + 4 <= bytes; place += step)
    mark = mix(mark, view.getInt32(at + place));
  return mark >>> 0;
}

function mix(mark: number, word: number): number {
  const mixed = Math.imul(mark ^ word, 0x85eb_ca6b);
  return mixed ^ (mixed >>> 15);
}
