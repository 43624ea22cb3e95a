import { RouseError, toRouseError } from '../errors.ts';
import { nbdLimits } from '../limits.ts';
import type { Extent, WritableDisk } from '../lib/disk.ts';
import {
  allocationFlag,
  chunk,
  chunkFlagDone,
  command,
  commandFlag,
  decodeRequest,
  encodeChunkHeader,
  encodeError,
  encodeSimpleReply,
  encodeStatus,
  errno,
  requestBytes,
  uint32,
  uint64,
} from './protocol.ts';
import type { Request, StatusExtent } from './protocol.ts';
import type { ChosenExport } from './session.ts';
import { ConnectionEnded, Slots } from './wire.ts';
import type { Wire } from './wire.ts';

/** The id under which `base:allocation` is told. */
export const allocationId = 1;

/** The server's half of the transmission phase: requests run side by side, within bounds. */
export class Transmission {
  readonly #wire: Wire;
  readonly #chosen: ChosenExport;
  readonly #onError: ((error: RouseError, exportName: string) => void) | undefined;
  readonly #slots = new Slots(nbdLimits.servedInFlightMax);
  readonly #bytes = new Slots(nbdLimits.servedInFlightBytesMax);
  readonly #running = new Set<Promise<void>>();

  constructor(
    wire: Wire,
    chosen: ChosenExport,
    onError: ((error: RouseError, exportName: string) => void) | undefined,
  ) {
    this.#wire = wire;
    this.#chosen = chosen;
    this.#onError = onError;
  }

  /** Until the client says farewell, vanishes or breaks the protocol; then nothing is in flight. */
  async run(): Promise<void> {
    try {
      for (;;) {
        const request = decodeRequest(await this.#wire.take(requestBytes));
        if (request === undefined || request.type === command.disconnect) return;
        await this.#start(request);
      }
    } finally {
      await Promise.all(this.#running);
    }
  }

  /** Takes a write's bytes off the wire before anything else is read. */
  async #start(request: Request): Promise<void> {
    const carries = request.type === command.read || request.type === command.write;
    const isTooLong = carries && request.length > nbdLimits.servedBytesMax;
    const bytes = carries && !isTooLong ? request.length : 0;
    await this.#slots.acquire(1);
    await this.#bytes.acquire(bytes);
    let payload: Buffer | undefined;
    try {
      if (request.type === command.write && isTooLong) await this.#wire.skip(request.length);
      else if (request.type === command.write) payload = await this.#wire.take(request.length);
    } catch (error) {
      this.#release(bytes);
      throw error;
    }
    const work = this.#serve(request, payload, isTooLong).finally(() => {
      this.#release(bytes);
      this.#running.delete(work);
    });
    this.#running.add(work);
  }

  #release(bytes: number): void {
    this.#slots.release(1);
    this.#bytes.release(bytes);
  }

  async #serve(request: Request, payload: Buffer | undefined, isTooLong: boolean): Promise<void> {
    try {
      if (isTooLong) throw new RequestRefused(errno.overflow, 'too long a request');
      this.#check(request);
      await this.#execute(request, payload);
    } catch (error) {
      if (error instanceof ConnectionEnded) return;
      await this.#answerError(request, error).catch(() => undefined);
    }
  }

  /** "Error values": beyond the end is ENOSPC for writers and EINVAL for readers. */
  #check(request: Request): void {
    const known = allowedFlags[request.type];
    if (known === undefined) throw new RequestRefused(errno.invalid, 'an unknown command');
    if ((request.flags & ~known) !== 0) throw new RequestRefused(errno.invalid, 'unknown flags');
    const writes = writers.has(request.type);
    if (writes && this.#chosen.export.writable === undefined) {
      throw new RequestRefused(errno.perm, 'the export is read-only');
    }
    const { sizeBytes } = this.#chosen.export.disk;
    if (request.type !== command.flush && request.offset + request.length > sizeBytes) {
      throw new RequestRefused(writes ? errno.noSpace : errno.invalid, 'beyond the end');
    }
  }

  async #execute(request: Request, payload: Buffer | undefined): Promise<void> {
    const { offset, length } = request;
    const { writable } = this.#chosen.export;
    switch (request.type) {
      case command.read:
        return this.#read(request);
      case command.blockStatus:
        return this.#status(request);
      case command.flush:
        await writable?.sync();
        break;
      case command.write:
        if (payload !== undefined) await writable?.write(payload, offset);
        break;
      default:
        await writable?.zero(offset, length);
    }
    await this.#finishWrite(request, writable);
  }

  async #finishWrite(request: Request, writable: WritableDisk | undefined): Promise<void> {
    if ((request.flags & commandFlag.fua) !== 0) await writable?.sync();
    await this.#wire.write(encodeSimpleReply(request.cookie, 0));
  }

  async #read(request: Request): Promise<void> {
    const { disk } = this.#chosen.export;
    const { cookie, offset, length } = request;
    if (!this.#chosen.structured) {
      const bytes = Buffer.allocUnsafe(length);
      await disk.read(bytes, offset);
      return this.#wire.write(encodeSimpleReply(cookie, 0), bytes);
    }
    const isWhole = (request.flags & commandFlag.dontFragment) !== 0 || length < holesFromBytes;
    const extents = isWhole
      ? [{ offset, length, zero: false }].filter((extent) => extent.length > 0)
      : await disk.extents(offset, length);
    for (const extent of extents) await this.#readChunk(cookie, extent);
    await this.#wire.write(
      encodeChunkHeader({ flags: chunkFlagDone, type: chunk.none, cookie, length: 0 }),
    );
  }

  async #readChunk(cookie: bigint, extent: Extent): Promise<void> {
    if (extent.zero) {
      const head = encodeChunkHeader({ flags: 0, type: chunk.offsetHole, cookie, length: 12 });
      return this.#wire.write(head, uint64(extent.offset), uint32(extent.length));
    }
    const bytes = Buffer.allocUnsafe(extent.length);
    await this.#chosen.export.disk.read(bytes, extent.offset);
    const length = 8 + extent.length;
    const head = encodeChunkHeader({ flags: 0, type: chunk.offsetData, cookie, length });
    await this.#wire.write(Buffer.concat([head, uint64(extent.offset)]), bytes);
  }

  async #status(request: Request): Promise<void> {
    if (!this.#chosen.hasAllocation || request.length === 0) {
      throw new RequestRefused(errno.invalid, 'no context was chosen');
    }
    const isOne = (request.flags & commandFlag.requestOne) !== 0;
    const extents = await this.#allocation(request, isOne ? 1 : nbdLimits.servedExtentsMax);
    const payload = encodeStatus(allocationId, extents);
    const { cookie } = request;
    const type = chunk.blockStatus;
    const head = encodeChunkHeader({ flags: chunkFlagDone, type, cookie, length: payload.length });
    await this.#wire.write(head, payload);
  }

  /** At least one extent; fewer than asked when there are many: the client asks on. */
  async #allocation(request: Request, extentsMax: number): Promise<StatusExtent[]> {
    const length = Math.min(request.length, nbdLimits.servedStatusBytesMax);
    const found = await this.#chosen.export.disk.extents(request.offset, length);
    return found
      .filter((extent) => extent.length > 0)
      .slice(0, extentsMax)
      .map((extent) => ({
        length: extent.length,
        flags: extent.zero ? allocationFlag.hole | allocationFlag.zero : 0,
      }));
  }

  async #answerError(request: Request, error: unknown): Promise<void> {
    const { number, message } = this.#describe(error);
    const needsChunk = request.type === command.read || request.type === command.blockStatus;
    if (!this.#chosen.structured || !needsChunk) {
      return this.#wire.write(encodeSimpleReply(request.cookie, number));
    }
    const payload = encodeError(number, message);
    const { cookie } = request;
    const { length } = payload;
    const head = encodeChunkHeader({ flags: chunkFlagDone, type: chunk.error, cookie, length });
    await this.#wire.write(head, payload);
  }

  #describe(error: unknown): { readonly number: number; readonly message: string } {
    if (error instanceof RequestRefused) return { number: error.number, message: error.message };
    const known = toRouseError(error, this.#chosen.export.name);
    this.#onError?.(known, this.#chosen.export.name);
    return { number: errnoOf(known), message: known.message };
  }
}

/** The client's fault, by NBD's number. */
class RequestRefused extends Error {
  readonly number: number;

  constructor(number: number, message: string) {
    super(message);
    this.number = number;
  }
}

/** Reads shorter than this are answered in one piece: looking for holes costs more. */
const holesFromBytes = 64 * 1024;

const writers: ReadonlySet<number> = new Set([command.write, command.trim, command.writeZeroes]);

const allowedFlags: Readonly<Record<number, number>> = {
  [command.read]: commandFlag.fua | commandFlag.dontFragment,
  [command.write]: commandFlag.fua,
  [command.flush]: commandFlag.fua,
  [command.trim]: commandFlag.fua,
  [command.writeZeroes]: commandFlag.fua | commandFlag.noHole,
  [command.blockStatus]: commandFlag.fua | commandFlag.requestOne,
};

function errnoOf(error: RouseError): number {
  switch (error.code) {
    case 'disk-full':
    case 'quota-exceeded':
      return errno.noSpace;
    case 'forbidden':
      return errno.perm;
    case 'bad-request':
      return errno.invalid;
    default:
      return errno.io;
  }
}
