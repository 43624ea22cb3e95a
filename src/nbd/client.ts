import * as net from 'node:net';
import type { Duplex } from 'node:stream';
import { RouseError, systemErrorCode } from '../errors.ts';
import { nbdLimits } from '../limits.ts';
import { systemClock } from '../lib/clock.ts';
import type { Clock } from '../lib/clock.ts';
import type { Extent, WritableDisk } from '../lib/disk.ts';
import { silent, vanished } from './failures.ts';
import { shakeHands } from './handshake.ts';
import type { Agreement } from './handshake.ts';
import {
  allocationContext,
  allocationFlag,
  command,
  dirtyFlag,
  transmissionFlag,
} from './protocol.ts';
import type { StatusExtent } from './protocol.ts';
import { Requests } from './requests.ts';
import { ConnectionEnded, Slots, Wire } from './wire.ts';

/**
 * An NBD client, and beside it (server.ts) a server: disks over a socket, as QEMU speaks it.
 *
 * - A *request* is one command on the wire; many are in flight, answered in any order, matched by
 *   *cookie*. Their number and size are bounded (nbdLimits).
 * - A *context* tells something about ranges: `base:allocation` what is zero,
 *   `qemu:dirty-bitmap:*` what changed. Without structured replies there are none, and everything
 *   is read.
 * - The connection is one: when it breaks, or the server breaks the protocol or is silent for too
 *   long, every request in flight and every later one fails with the same error.
 */
export interface NbdOptions {
  /** A unix socket's path; otherwise host and port. */
  readonly socket?: string;
  readonly host?: string;
  readonly port?: number;
  readonly exportName: string;
  /** `base:allocation` is always asked for. */
  readonly metaContexts?: readonly string[];
  readonly clock?: Clock;
  /** Silence after which the server is taken for dead. */
  readonly answerMsMax?: number;
}

export interface NbdDisk extends WritableDisk {
  readonly isReadOnly: boolean;
  /** Contexts the server has, of those asked for. */
  readonly contexts: readonly string[];
  /** The ranges within [offset, offset + length) that a dirty bitmap says have changed. */
  changedExtents(context: string, offset: number, length: number): Promise<readonly Extent[]>;
  /** Tells the server that the content is not needed any more; what it reads as is open. */
  trim(offset: number, length: number): Promise<void>;
}

export async function connectNbd(options: NbdOptions): Promise<NbdDisk> {
  const name = nameOf(options);
  const clock = options.clock ?? systemClock;
  const stream = await openSocket(options, name, clock);
  return connectNbdStream(stream, name, { ...options, clock });
}

/** The same on a stream that is connected already. */
export async function connectNbdStream(
  stream: Duplex,
  name: string,
  options: Omit<NbdOptions, 'socket' | 'host' | 'port'> & { readonly clock: Clock },
): Promise<NbdDisk> {
  const wire = new Wire(stream);
  const contexts = [...new Set([allocationContext, ...(options.metaContexts ?? [])])];
  const answerMsMax = options.answerMsMax ?? nbdLimits.answerMsMax;
  const timer = new AbortController();
  try {
    const agreement = await Promise.race([
      shakeHands(wire, name, options.exportName, contexts),
      options.clock.sleep(answerMsMax, timer.signal).then(() => {
        throw silent(name, answerMsMax);
      }),
    ]);
    return new NbdClient({ wire, name, agreement, clock: options.clock, answerMsMax });
  } catch (error) {
    wire.destroy();
    throw error instanceof ConnectionEnded ? vanished(name, error) : error;
  } finally {
    timer.abort();
  }
}

function nameOf(options: NbdOptions): string {
  const place = options.socket ?? `${options.host ?? 'localhost'}:${options.port ?? defaultPort}`;
  return `NBD server ${place}`;
}

/** "Newstyle negotiation": the port that IANA gave to NBD. */
const defaultPort = 10809;

async function openSocket(options: NbdOptions, name: string, clock: Clock): Promise<net.Socket> {
  const socket =
    options.socket === undefined
      ? net.connect({ host: options.host ?? 'localhost', port: options.port ?? defaultPort })
      : net.connect({ path: options.socket });
  const timer = new AbortController();
  const connected = new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('error', reject);
  });
  try {
    await Promise.race([
      connected,
      clock.sleep(nbdLimits.connectMsMax, timer.signal).then(() => {
        throw silent(name, nbdLimits.connectMsMax);
      }),
    ]);
  } catch (error) {
    connected.catch(() => undefined);
    socket.destroy();
    if (error instanceof RouseError) throw error;
    const why = systemErrorCode(error) ?? (error instanceof Error ? error.message : String(error));
    throw new RouseError('host-unreachable', `${name}: cannot be reached (${why})`, {
      advice: 'Check that the NBD server runs and listens there.',
      cause: error,
    });
  } finally {
    timer.abort();
  }
  socket.setNoDelay(true);
  return socket;
}

class NbdClient implements NbdDisk {
  readonly sizeBytes: number;
  readonly isReadOnly: boolean;
  readonly contexts: readonly string[];
  readonly #name: string;
  readonly #agreement: Agreement;
  readonly #requests: Requests;
  readonly #slots = new Slots(nbdLimits.requestsInFlightMax);
  readonly #requestBytesMax: number;

  constructor(spec: {
    readonly wire: Wire;
    readonly name: string;
    readonly agreement: Agreement;
    readonly clock: Clock;
    readonly answerMsMax: number;
  }) {
    const { agreement } = spec;
    this.sizeBytes = agreement.sizeBytes;
    this.isReadOnly = this.#has(agreement, transmissionFlag.readOnly);
    this.contexts = [...agreement.contexts.keys()];
    this.#name = spec.name;
    this.#agreement = agreement;
    this.#requests = new Requests(spec);
    const most = Math.min(nbdLimits.requestBytesMax, agreement.requestBytesMax);
    this.#requestBytesMax = most - (most % agreement.blockBytesMin);
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    this.#checkRange(offset, target.length);
    const least = this.#agreement.blockBytesMin;
    if (offset % least !== 0 || target.length % least !== 0)
      return this.#readWidened(target, offset);
    await this.#inPieces(offset, target.length, this.#requestBytesMax, (at, length) => {
      const part = target.subarray(at - offset, at - offset + length);
      return this.#requests.read(part, at);
    });
  }

  /** Servers with blocks larger than what is wanted: read whole ones, give a part. */
  async #readWidened(target: Uint8Array, offset: number): Promise<void> {
    const least = this.#agreement.blockBytesMin;
    const start = offset - (offset % least);
    const end = Math.min(this.sizeBytes, Math.ceil((offset + target.length) / least) * least);
    const step = this.#requestBytesMax;
    for (let at = start; at < end; at += step) {
      const whole = Buffer.allocUnsafe(Math.min(step, end - at));
      await this.#inPieces(at, whole.length, step, (from) => this.#requests.read(whole, from));
      const first = Math.max(at, offset);
      const last = Math.min(at + whole.length, offset + target.length);
      target.set(whole.subarray(first - at, last - at), first - offset);
    }
  }

  async extents(offset: number, length: number): Promise<readonly Extent[]> {
    this.#checkRange(offset, length);
    const context = this.#agreement.contexts.get(allocationContext);
    if (context === undefined) return length === 0 ? [] : [{ offset, length, zero: false }];
    const list: Extent[] = [];
    await this.#status(context, offset, length, (at, extent) => {
      // A hole that need not read as zeros is read: what it gives is then what a guest gets.
      append(list, at, extent.length, (extent.flags & allocationFlag.zero) !== 0);
    });
    return list;
  }

  async changedExtents(
    context: string,
    offset: number,
    length: number,
  ): Promise<readonly Extent[]> {
    this.#checkRange(offset, length);
    const id = this.#agreement.contexts.get(context);
    if (id === undefined) {
      throw new RouseError('not-found', `${this.#name}: does not offer the context ${context}`, {
        advice: 'Back up in full: what changed is not known.',
      });
    }
    const list: Extent[] = [];
    await this.#status(id, offset, length, (at, extent) => {
      if ((extent.flags & dirtyFlag) !== 0) append(list, at, extent.length, false);
    });
    return list;
  }

  async #status(
    context: number,
    offset: number,
    length: number,
    visit: (at: number, extent: StatusExtent) => void,
  ): Promise<void> {
    const least = this.#agreement.blockBytesMin;
    const end = Math.min(this.sizeBytes, Math.ceil((offset + length) / least) * least);
    let at = offset - (offset % least);
    while (at < end) {
      const asked = Math.min(end - at, nbdLimits.statusBytesMax);
      await this.#slots.acquire(1);
      const found = await this.#requests
        .status(at, asked, context)
        .finally(() => this.#slots.release(1));
      const limit = at + asked;
      for (const extent of found) {
        // The last extent may reach beyond what was asked.
        const next = Math.min(at + extent.length, limit);
        const [from, to] = [Math.max(at, offset), Math.min(next, offset + length)];
        if (from < to) visit(from, { ...extent, length: to - from });
        at = next;
      }
    }
  }

  async write(source: Uint8Array, offset: number): Promise<void> {
    this.#checkWritable(offset, source.length);
    await this.#inPieces(offset, source.length, this.#requestBytesMax, (at, length) => {
      const data = source.subarray(at - offset, at - offset + length);
      return this.#requests.plain(command.write, { offset: at, length, data });
    });
  }

  async zero(offset: number, length: number): Promise<void> {
    this.#checkWritable(offset, length);
    const isOffered = this.#has(this.#agreement, transmissionFlag.sendWriteZeroes);
    const step = isOffered ? nbdLimits.zeroBytesMax : this.#requestBytesMax;
    const zeros = isOffered ? undefined : Buffer.alloc(Math.min(length, step));
    await this.#inPieces(offset, length, step, (at, part) =>
      zeros === undefined
        ? this.#requests.plain(command.writeZeroes, { offset: at, length: part })
        : this.#requests.plain(command.write, {
            offset: at,
            length: part,
            data: zeros.subarray(0, part),
          }),
    );
  }

  async trim(offset: number, length: number): Promise<void> {
    this.#checkWritable(offset, length);
    if (!this.#has(this.#agreement, transmissionFlag.sendTrim)) return;
    await this.#inPieces(offset, length, nbdLimits.zeroBytesMax, (at, part) =>
      this.#requests.plain(command.trim, { offset: at, length: part }),
    );
  }

  async sync(): Promise<void> {
    if (!this.#has(this.#agreement, transmissionFlag.sendFlush)) return;
    await this.#requests.plain(command.flush, { offset: 0, length: 0 });
  }

  close(): Promise<void> {
    return this.#requests.close();
  }

  /** Every piece under way ends before this does, so that buffers are the caller's again. */
  async #inPieces(
    offset: number,
    length: number,
    step: number,
    work: (at: number, length: number) => Promise<void>,
  ): Promise<void> {
    const failures: unknown[] = [];
    const pending: Promise<void>[] = [];
    for (let at = offset; at < offset + length && failures.length === 0; at += step) {
      await this.#slots.acquire(1);
      const done = work(at, Math.min(step, offset + length - at))
        .catch((error: unknown) => void failures.push(error))
        .finally(() => this.#slots.release(1));
      pending.push(done);
    }
    await Promise.all(pending);
    if (failures.length > 0) throw failures[0];
  }

  #has(agreement: Agreement, flag: number): boolean {
    return (agreement.flags & flag) !== 0;
  }

  #checkWritable(offset: number, length: number): void {
    if (this.isReadOnly)
      throw new RouseError('forbidden', `${this.#name}: the export is read-only`);
    this.#checkRange(offset, length);
    const least = this.#agreement.blockBytesMin;
    if (offset % least !== 0 || length % least !== 0) {
      throw new RouseError('bad-request', `${this.#name}: only whole blocks of ${least} bytes`);
    }
  }

  #checkRange(offset: number, length: number): void {
    const isRange = Number.isSafeInteger(offset) && offset >= 0 && length >= 0;
    if (isRange && offset + length <= this.sizeBytes) return;
    throw new RouseError(
      'bad-request',
      `${this.#name}: ${length} bytes at ${offset} lie outside of the disk's ${this.sizeBytes}`,
    );
  }
}

function append(list: Extent[], offset: number, length: number, zero: boolean): void {
  const last = list.at(-1);
  if (last !== undefined && last.zero === zero && last.offset + last.length === offset) {
    list[list.length - 1] = { ...last, length: last.length + length };
  } else {
    list.push({ offset, length, zero });
  }
}
