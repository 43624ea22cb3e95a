import { crc32 } from 'node:zlib';
import { nfsLimits } from '../limits.ts';

/**
 * The duplicate request cache: a call that must not run twice (CREATE, REMOVE, RENAME, ...) and
 * comes again, because its reply was lost, gets the reply of the first run; while that still runs,
 * it waits for it. Calls are the same when client address, xid, procedure and all bytes are; ports
 * do not count, so it holds over reconnects. Bounded by entries, bytes and age.
 */
export type ReplySink = (reply: Buffer) => void;

interface Entry {
  readonly key: string;
  readonly bornMs: number;
  reply: Buffer | undefined;
  waiting: ReplySink[];
}

export class DuplicateRequests {
  readonly #entries = new Map<string, Entry>();
  #bytes = 0;

  static key(address: string, xid: number, procedure: number, call: Uint8Array): string {
    return `${address} ${xid} ${procedure} ${call.length} ${crc32(call)}`;
  }

  get size(): number {
    return this.#entries.size;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /**
   * undefined: the call is new, run it and `finish` or `forget` it. Otherwise `sink` gets the reply
   * of the first run, now or when it ends.
   */
  begin(key: string, nowMs: number, sink: ReplySink): 'run' | 'joined' {
    this.#expire(nowMs);
    const entry = this.#entries.get(key);
    if (entry === undefined) {
      this.#entries.set(key, { key, bornMs: nowMs, reply: undefined, waiting: [] });
      this.#shrink();
      return 'run';
    }
    if (entry.reply !== undefined) sink(entry.reply);
    // A client that repeats itself more often than this gets the reply it waits for once anyway.
    else if (entry.waiting.length < 8) entry.waiting.push(sink);
    return 'joined';
  }

  /** Remembers the reply (a copy, from the xid on) and answers those who wait for it. */
  finish(key: string, reply: Uint8Array): void {
    const entry = this.#entries.get(key);
    if (entry === undefined) return;
    const kept = Buffer.from(reply);
    entry.reply = kept;
    this.#bytes += kept.length;
    for (const sink of entry.waiting.splice(0)) sink(kept);
    this.#shrink();
  }

  /** The call had no effect worth remembering: it may run again. */
  forget(key: string): void {
    const entry = this.#entries.get(key);
    if (entry !== undefined && entry.reply === undefined) this.#entries.delete(key);
  }

  #expire(nowMs: number): void {
    for (const entry of this.#entries.values()) {
      if (nowMs - entry.bornMs < nfsLimits.duplicateAgeMs) return;
      // One that still runs stays, or a late repetition would run it twice.
      if (entry.reply !== undefined) this.#drop(entry);
    }
  }

  /** The oldest that ended go first; those that run are bounded by the calls in flight. */
  #shrink(): void {
    if (this.#within()) return;
    for (const entry of this.#entries.values()) {
      if (entry.reply !== undefined) this.#drop(entry);
      if (this.#within()) return;
    }
  }

  #within(): boolean {
    return (
      this.#entries.size <= nfsLimits.duplicateEntriesMax &&
      this.#bytes <= nfsLimits.duplicateBytesMax
    );
  }

  #drop(entry: Entry): void {
    this.#entries.delete(entry.key);
    this.#bytes -= entry.reply?.length ?? 0;
  }
}
