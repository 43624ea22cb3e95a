import type { RouseError } from '../errors.ts';
import { nbdLimits } from '../limits.ts';
import type { Clock } from '../lib/clock.ts';
import { decodeContextQuery } from './handshake.ts';
import {
  allocationContext,
  encodeOptionReply,
  encodeString,
  FieldReader,
  handshakeFlag,
  info,
  magic,
  option,
  optionReply,
  transmissionFlag,
  uint16,
  uint32,
  uint64,
} from './protocol.ts';
import type { NbdExport } from './server.ts';
import { allocationId, Transmission } from './transmission.ts';
import { ConnectionEnded } from './wire.ts';
import type { Wire } from './wire.ts';

export interface SessionOptions {
  exports(): readonly NbdExport[];
  readonly clock: Clock;
  readonly onError?: (error: RouseError, exportName: string) => void;
}

/**
 * One connection from greeting to farewell. Resolves when it is over, whatever ended it; nothing
 * of it is in flight then.
 */
export async function serveSession(wire: Wire, options: SessionOptions): Promise<void> {
  const timer = new AbortController();
  const impatience = options.clock.sleep(nbdLimits.handshakeMsMax, timer.signal).then(
    () => wire.destroy(),
    () => undefined,
  );
  try {
    const chosen = await new ServerHandshake(wire, options.exports()).run();
    timer.abort();
    if (chosen !== undefined) await new Transmission(wire, chosen, options.onError).run();
    wire.finish();
  } catch (error) {
    // The client is gone, or broke the protocol: either way there is nobody to tell.
    wire.destroy();
    if (!(error instanceof ConnectionEnded)) throw error;
  } finally {
    timer.abort();
    await impatience;
  }
}

export interface ChosenExport {
  readonly export: NbdExport;
  readonly structured: boolean;
  /** The client chose `base:allocation`. */
  readonly hasAllocation: boolean;
}

interface ClientOption {
  readonly type: number;
  readonly payload: Buffer;
}

class ServerHandshake {
  readonly #wire: Wire;
  readonly #exports: readonly NbdExport[];
  #structured = false;
  #allocationFor: string | undefined;

  constructor(wire: Wire, exports: readonly NbdExport[]) {
    this.#wire = wire;
    this.#exports = exports;
  }

  /** Undefined: the client went away in peace, or was sent away. */
  async run(): Promise<ChosenExport | undefined> {
    const hello = Buffer.alloc(18);
    hello.writeBigUInt64BE(magic.server, 0);
    hello.writeBigUInt64BE(magic.option, 8);
    hello.writeUInt16BE(handshakeFlag.fixedNewstyle | handshakeFlag.noZeroes, 16);
    await this.#wire.write(hello);
    const flags = (await this.#wire.take(4)).readUInt32BE(0);
    if ((flags & ~(handshakeFlag.fixedNewstyle | handshakeFlag.noZeroes)) !== 0) return undefined;
    for (let count = 0; count < nbdLimits.optionsMax; count++) {
      const asked = await this.#nextOption();
      if (asked === undefined) return undefined;
      if (asked.type === option.exportName) return this.#exportName(asked, flags);
      if (asked.type === option.abort) {
        await this.#reply(asked, optionReply.ack);
        return undefined;
      }
      const chosen = await this.#answer(asked);
      if (chosen !== undefined) return chosen;
    }
    return undefined;
  }

  async #nextOption(): Promise<ClientOption | undefined> {
    const head = await this.#wire.take(16);
    if (head.readBigUInt64BE(0) !== magic.option) return undefined;
    const type = head.readUInt32BE(8);
    const length = head.readUInt32BE(12);
    // The largest of ours: a name, and contexts by the longest names.
    if (length > (nbdLimits.contextsMax + 2) * nbdLimits.stringBytesMax) return undefined;
    return { type, payload: await this.#wire.take(length) };
  }

  async #answer(asked: ClientOption): Promise<ChosenExport | undefined> {
    switch (asked.type) {
      case option.structuredReply: {
        if (asked.payload.length > 0) return this.#refuse(asked, optionReply.errorInvalid);
        this.#structured = true;
        await this.#reply(asked, optionReply.ack);
        return undefined;
      }
      case option.list:
        return this.#list(asked);
      case option.info:
      case option.go:
        return this.#infoOrGo(asked);
      case option.listMetaContext:
      case option.setMetaContext:
        return this.#contexts(asked);
      default:
        return this.#refuse(asked, optionReply.errorUnsupported);
    }
  }

  async #list(asked: ClientOption): Promise<undefined> {
    if (asked.payload.length > 0) return this.#refuse(asked, optionReply.errorInvalid);
    for (const item of this.#exports) {
      const description = Buffer.from(item.description ?? '', 'utf8');
      const payload = Buffer.concat([encodeString(item.name), description]);
      await this.#reply(asked, optionReply.server, payload);
    }
    await this.#reply(asked, optionReply.ack);
    return undefined;
  }

  async #infoOrGo(asked: ClientOption): Promise<ChosenExport | undefined> {
    const fields = new FieldReader(asked.payload);
    const name = fields.string(nbdLimits.stringBytesMax);
    const count = fields.uint16();
    if (name === undefined || count === undefined || fields.left !== count * 2) {
      return this.#refuse(asked, optionReply.errorInvalid);
    }
    const found = this.#find(name);
    if (found === undefined) return this.#refuse(asked, optionReply.errorUnknown, 'no such export');
    const facts = [uint16(info.export), uint64(found.disk.sizeBytes), uint16(this.#flags(found))];
    await this.#reply(asked, optionReply.info, Buffer.concat(facts));
    // Any offset will do; pages are best; larger requests are refused.
    const sizes = [uint32(1), uint32(4096), uint32(nbdLimits.servedBytesMax)];
    await this.#reply(asked, optionReply.info, Buffer.concat([uint16(info.blockSize), ...sizes]));
    await this.#reply(asked, optionReply.ack);
    return asked.type === option.go ? this.#chosen(found) : undefined;
  }

  async #contexts(asked: ClientOption): Promise<undefined> {
    const query = decodeContextQuery(asked.payload);
    if (query === undefined || !this.#structured) {
      return this.#refuse(asked, optionReply.errorInvalid);
    }
    const found = this.#find(query.exportName);
    if (found === undefined) return this.#refuse(asked, optionReply.errorUnknown, 'no such export');
    const isSet = asked.type === option.setMetaContext;
    // Listing without a query, or with a bare namespace, means all of it.
    const lists = !isSet && (query.queries.length === 0 || query.queries.includes('base:'));
    const isChosen = lists || query.queries.includes(allocationContext);
    if (isSet) this.#allocationFor = isChosen ? found.name : undefined;
    if (isChosen) {
      const payload = Buffer.concat([uint32(allocationId), Buffer.from(allocationContext)]);
      await this.#reply(asked, optionReply.metaContext, payload);
    }
    await this.#reply(asked, optionReply.ack);
    return undefined;
  }

  async #exportName(asked: ClientOption, clientFlags: number): Promise<ChosenExport | undefined> {
    const found = this.#find(asked.payload.toString('utf8'));
    if (found === undefined) return undefined;
    const noZeroes = (clientFlags & handshakeFlag.noZeroes) !== 0;
    const padding = Buffer.alloc(noZeroes ? 0 : 124);
    const facts = [uint64(found.disk.sizeBytes), uint16(this.#flags(found)), padding];
    await this.#wire.write(Buffer.concat(facts));
    return this.#chosen(found);
  }

  #find(name: string): NbdExport | undefined {
    return name === '' ? this.#exports[0] : this.#exports.find((item) => item.name === name);
  }

  #chosen(found: NbdExport): ChosenExport {
    const hasAllocation = this.#structured && this.#allocationFor === found.name;
    return { export: found, structured: this.#structured, hasAllocation };
  }

  #flags(found: NbdExport): number {
    const always =
      transmissionFlag.hasFlags |
      transmissionFlag.canMultiConn |
      (this.#structured ? transmissionFlag.sendDf : 0);
    if (found.writable === undefined) return always | transmissionFlag.readOnly;
    return (
      always |
      transmissionFlag.sendFlush |
      transmissionFlag.sendFua |
      transmissionFlag.sendTrim |
      transmissionFlag.sendWriteZeroes
    );
  }

  async #refuse(asked: ClientOption, reply: number, message = ''): Promise<undefined> {
    await this.#reply(asked, reply, Buffer.from(message));
    return undefined;
  }

  async #reply(asked: ClientOption, reply: number, payload = Buffer.alloc(0)): Promise<void> {
    await this.#wire.write(encodeOptionReply(asked.type, reply, payload));
  }
}
