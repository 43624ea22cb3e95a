import { RouseError } from '../errors.ts';
import { nbdLimits } from '../limits.ts';
import type { Clock } from '../lib/clock.ts';
import { silent, vanished, wrongServer } from './failures.ts';
import type { Agreement } from './handshake.ts';
import {
  chunk,
  chunkFlagDone,
  chunkHeaderBytes,
  command,
  decodeChunkHeader,
  decodeError,
  decodeStatus,
  encodeRequest,
  errno,
  magic,
  readOffset,
  simpleReplyBytes,
} from './protocol.ts';
import type { ChunkHeader, StatusExtent } from './protocol.ts';
import type { Wire } from './wire.ts';

/** Requests in flight on one connection, and the loop that hears their replies. */
export class Requests {
  readonly #wire: Wire;
  readonly #name: string;
  readonly #agreement: Agreement;
  readonly #clock: Clock;
  readonly #answerMsMax: number;
  readonly #pending = new Map<bigint, Pending>();
  #nextCookie = 1n;
  #failure: RouseError | undefined;
  #isClosing = false;
  readonly #heard: Promise<void>;
  readonly #over = new AbortController();

  constructor(spec: {
    readonly wire: Wire;
    readonly name: string;
    readonly agreement: Agreement;
    readonly clock: Clock;
    readonly answerMsMax: number;
  }) {
    this.#wire = spec.wire;
    this.#name = spec.name;
    this.#agreement = spec.agreement;
    this.#clock = spec.clock;
    this.#answerMsMax = spec.answerMsMax;
    this.#heard = this.#hear();
    void this.#watch();
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    const parts = new Parts(offset, target.length);
    await this.#send(command.read, { offset, length: target.length, target, parts });
  }

  async status(offset: number, length: number, context: number): Promise<readonly StatusExtent[]> {
    const found = new Map<number, readonly StatusExtent[]>();
    await this.#send(command.blockStatus, { offset, length, found });
    const extents = found.get(context);
    if (extents !== undefined) return extents;
    throw this.#fail(this.#wrong('a status without the context that was asked for'));
  }

  async plain(
    type: number,
    range: { readonly offset: number; readonly length: number; readonly data?: Uint8Array },
  ): Promise<void> {
    await this.#send(type, range);
  }

  #send(type: number, spec: RequestSpec): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#isClosing) {
      return Promise.reject(new RouseError('internal', `${this.#name}: used after it was closed`));
    }
    const cookie = this.#nextCookie++;
    const { offset, length } = spec;
    const answered = new Promise<void>((resolve, reject) => {
      this.#pending.set(cookie, { ...spec, type, resolve, reject, error: undefined });
    });
    const head = encodeRequest({ flags: 0, type, cookie, offset, length });
    const bytes = spec.data === undefined ? [head] : [head, spec.data];
    this.#wire.write(...bytes).catch((error: unknown) => this.#fail(error));
    return answered;
  }

  async #hear(): Promise<void> {
    try {
      for (;;) {
        const head = await this.#wire.take(simpleReplyBytes);
        const kind = head.readUInt32BE(0);
        if (kind === magic.simpleReply) await this.#simple(head);
        else if (kind === magic.structuredReply) await this.#structured(head);
        else throw this.#wrong('a reply that is none');
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  async #simple(head: Buffer): Promise<void> {
    const error = head.readUInt32BE(4);
    const cookie = head.readBigUInt64BE(8);
    const pending = this.#known(cookie);
    const needsChunks = pending.type === command.blockStatus || pending.target !== undefined;
    if (this.#agreement.structured && needsChunks && error === 0) {
      throw this.#wrong('a simple reply where a structured one was agreed');
    }
    if (error !== 0) pending.error ??= this.#answerError(pending, error, '');
    else if (pending.target !== undefined) {
      await this.#wire.readInto(pending.target);
      pending.parts?.add(pending.offset, pending.length);
    }
    this.#finish(cookie, pending);
  }

  async #structured(start: Buffer): Promise<void> {
    if (!this.#agreement.structured) throw this.#wrong('a structured reply that was not agreed');
    const rest = await this.#wire.take(chunkHeaderBytes - simpleReplyBytes);
    const header = decodeChunkHeader(Buffer.concat([start, rest]));
    const pending = this.#known(header.cookie);
    if (header.type >= 2 ** 15) await this.#errorChunk(header, pending);
    else if (header.type === chunk.none && header.length === 0) this.#checkDone(header);
    else if (header.type === chunk.offsetData) await this.#dataChunk(header, pending);
    else if (header.type === chunk.offsetHole) await this.#holeChunk(header, pending);
    else if (header.type === chunk.blockStatus) await this.#statusChunk(header, pending);
    else throw this.#wrong(`a chunk of type ${header.type} and ${header.length} bytes`);
    if ((header.flags & chunkFlagDone) !== 0) this.#finish(header.cookie, pending);
  }

  #checkDone(header: ChunkHeader): void {
    if ((header.flags & chunkFlagDone) === 0)
      throw this.#wrong('an empty chunk that is not the last');
  }

  async #dataChunk(header: ChunkHeader, pending: Pending): Promise<void> {
    if (header.length < 9) throw this.#wrong('a data chunk without data');
    const offset = readOffset(await this.#wire.take(8), 0);
    const part = this.#partOf(pending, offset, header.length - 8);
    await this.#wire.readInto(part);
  }

  async #holeChunk(header: ChunkHeader, pending: Pending): Promise<void> {
    if (header.length !== 12) throw this.#wrong(`a hole chunk of ${header.length} bytes`);
    const payload = await this.#wire.take(12);
    this.#partOf(pending, readOffset(payload, 0), payload.readUInt32BE(8)).fill(0);
  }

  /** Where a chunk's content belongs; it must lie within what was asked, and come once. */
  #partOf(pending: Pending, offset: number, length: number): Uint8Array {
    if (pending.target === undefined || pending.parts === undefined) {
      throw this.#wrong('content in answer to what was no read');
    }
    const at = offset - pending.offset;
    if (length === 0 || at < 0 || at + length > pending.length) {
      throw this.#wrong(`${length} bytes at ${offset}, which nobody asked for`);
    }
    if (!pending.parts.add(offset, length))
      throw this.#wrong('content that overlaps, or in crumbs');
    return pending.target.subarray(at, at + length);
  }

  async #statusChunk(header: ChunkHeader, pending: Pending): Promise<void> {
    if (header.length > nbdLimits.statusReplyBytesMax) {
      throw this.#wrong(`a status of ${header.length} bytes`);
    }
    const status = decodeStatus(await this.#wire.take(header.length));
    if (status === undefined || pending.found === undefined || pending.found.has(status.context)) {
      throw this.#wrong('a status that cannot be');
    }
    if (![...this.#agreement.contexts.values()].includes(status.context)) {
      throw this.#wrong('a status of a context that was not agreed');
    }
    pending.found.set(status.context, status.extents);
  }

  async #errorChunk(header: ChunkHeader, pending: Pending): Promise<void> {
    if (header.length > 2 * nbdLimits.stringBytesMax) throw this.#wrong('an endless error');
    const said = decodeError(await this.#wire.take(header.length));
    if (said === undefined) throw this.#wrong('an error that cannot be read');
    pending.error ??= this.#answerError(pending, said.error, said.message);
  }

  #known(cookie: bigint): Pending {
    const pending = this.#pending.get(cookie);
    if (pending === undefined) throw this.#wrong('a reply to what nobody asked');
    return pending;
  }

  #finish(cookie: bigint, pending: Pending): void {
    if (pending.error === undefined && pending.parts !== undefined && !pending.parts.isWhole) {
      throw this.#wrong(`an answer to a read that lacks some of its ${pending.length} bytes`);
    }
    this.#pending.delete(cookie);
    if (pending.error === undefined) pending.resolve();
    else pending.reject(pending.error);
  }

  #answerError(pending: Pending, error: number, message: string): RouseError {
    const what = commandNames[pending.type] ?? `command ${pending.type}`;
    const words = message === '' ? '' : `: ${message.slice(0, 300)}`;
    const place = `${what} of ${pending.length} bytes at ${pending.offset}`;
    const text = `${this.#name}: ${place} failed with error ${error}${words}`;
    if (error === errno.noSpace) return new RouseError('disk-full', text);
    if (error === errno.perm) return new RouseError('forbidden', text);
    if (error === errno.invalid && pending.type === command.read) {
      return new RouseError('io-error', text, {
        advice: 'If the disk was made smaller meanwhile, start again.',
      });
    }
    return new RouseError('io-error', text, {
      advice: 'Look at the server and the disk below it.',
    });
  }

  #wrong(what: string): RouseError {
    return wrongServer(this.#name, what);
  }

  /** The end of this connection: one error for all that waits and all that comes. */
  #fail(error: unknown): RouseError {
    if (this.#failure === undefined) {
      this.#failure = error instanceof RouseError ? error : vanished(this.#name, error);
      this.#over.abort();
      this.#wire.destroy();
      for (const pending of this.#pending.values()) pending.reject(this.#failure);
      this.#pending.clear();
    }
    return this.#failure;
  }

  /** Silence counts only while something is asked. */
  async #watch(): Promise<void> {
    let received = this.#wire.received;
    let quietSince = this.#clock.monotonic();
    try {
      for (;;) {
        await this.#clock.sleep(this.#answerMsMax / 4, this.#over.signal);
        const now = this.#clock.monotonic();
        if (this.#pending.size === 0 || this.#wire.received !== received) quietSince = now;
        received = this.#wire.received;
        if (now - quietSince >= this.#answerMsMax)
          this.#fail(silent(this.#name, this.#answerMsMax));
      }
    } catch {
      // Aborted: the connection has ended, and whoever waited knows.
    }
  }

  async close(): Promise<void> {
    if (this.#isClosing) return;
    this.#isClosing = true;
    this.#over.abort();
    if (this.#failure === undefined) {
      const bye = { flags: 0, type: command.disconnect, cookie: 0n, offset: 0, length: 0 };
      this.#wire.write(encodeRequest(bye)).catch(() => undefined);
      this.#wire.end();
      const timer = new AbortController();
      const late = this.#clock.sleep(nbdLimits.farewellMsMax, timer.signal).catch(() => undefined);
      await Promise.race([this.#heard, late]);
      timer.abort();
    }
    this.#wire.destroy();
  }
}

interface RequestSpec {
  readonly offset: number;
  readonly length: number;
  readonly data?: Uint8Array;
  readonly target?: Uint8Array;
  readonly parts?: Parts;
  readonly found?: Map<number, readonly StatusExtent[]>;
}

interface Pending extends RequestSpec {
  readonly type: number;
  readonly resolve: () => void;
  readonly reject: (error: RouseError) => void;
  error: RouseError | undefined;
}

const commandNames: Readonly<Record<number, string>> = {
  [command.read]: 'a read',
  [command.write]: 'a write',
  [command.flush]: 'a flush',
  [command.trim]: 'a trim',
  [command.writeZeroes]: 'zeroing',
  [command.blockStatus]: 'the status',
};

/** Which parts of a read have come: sorted, neighbours joined. */
export class Parts {
  readonly #start: number;
  readonly #end: number;
  readonly #ranges: { start: number; end: number }[] = [];

  constructor(offset: number, length: number) {
    this.#start = offset;
    this.#end = offset + length;
  }

  get isWhole(): boolean {
    if (this.#start === this.#end) return true;
    const [first] = this.#ranges;
    return first !== undefined && first.start === this.#start && first.end === this.#end;
  }

  /** False when it overlaps what has come, or when there are too many pieces. */
  add(offset: number, length: number): boolean {
    const end = offset + length;
    let at = this.#ranges.length;
    while (at > 0 && (this.#ranges[at - 1]?.start ?? 0) >= offset) at--;
    const before = this.#ranges[at - 1];
    const after = this.#ranges[at];
    if (
      (before !== undefined && before.end > offset) ||
      (after !== undefined && after.start < end)
    ) {
      return false;
    }
    const joinsBefore = before?.end === offset;
    const joinsAfter = after?.start === end;
    if (before !== undefined && joinsBefore) {
      before.end = joinsAfter && after !== undefined ? after.end : end;
      if (joinsAfter) this.#ranges.splice(at, 1);
    } else if (after !== undefined && joinsAfter) after.start = offset;
    else this.#ranges.splice(at, 0, { start: offset, end });
    return this.#ranges.length <= nbdLimits.readChunksMax;
  }
}
