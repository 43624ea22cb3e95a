import { RouseError } from '../errors.ts';
import { nbdLimits } from '../limits.ts';
import { wrongServer } from './failures.ts';
import {
  encodeOption,
  encodeString,
  FieldReader,
  handshakeFlag,
  info,
  magic,
  option,
  optionReply,
  readOffset,
  uint16,
  uint32,
} from './protocol.ts';
import type { Wire } from './wire.ts';

/** What both sides agreed on before the first request. */
export interface Agreement {
  readonly sizeBytes: number;
  /** Transmission flags. */
  readonly flags: number;
  readonly structured: boolean;
  /** Ids of the contexts that were asked for and exist, by name. */
  readonly contexts: ReadonlyMap<string, number>;
  /** Requests are multiples of this. */
  readonly blockBytesMin: number;
  readonly requestBytesMax: number;
}

/** The client's half of the fixed newstyle handshake. `name` is the server's, for errors. */
export async function shakeHands(
  wire: Wire,
  name: string,
  exportName: string,
  contexts: readonly string[],
): Promise<Agreement> {
  const client = new ClientHandshake(wire, name, exportName);
  await client.greet();
  const structured = await client.askStructured();
  const chosen = structured ? await client.askContexts(contexts) : new Map<string, number>();
  const agreed = await client.go();
  return { ...agreed, structured, contexts: chosen };
}

type ExportFacts = Omit<Agreement, 'structured' | 'contexts'>;

class ClientHandshake {
  readonly #wire: Wire;
  readonly #name: string;
  readonly #exportName: string;
  #noZeroes = false;

  constructor(wire: Wire, name: string, exportName: string) {
    this.#wire = wire;
    this.#name = name;
    this.#exportName = exportName;
  }

  async greet(): Promise<void> {
    const hello = await this.#wire.take(18);
    if (hello.readBigUInt64BE(0) !== magic.server)
      throw this.#wrong('it does not greet as NBD does');
    if (hello.readBigUInt64BE(8) !== magic.option) {
      throw new RouseError('unsupported-format', `${this.#name}: speaks an old form of NBD`, {
        advice: 'Start the server with its newstyle handshake.',
      });
    }
    const flags = hello.readUInt16BE(16);
    if ((flags & handshakeFlag.fixedNewstyle) === 0) {
      throw this.#wrong('it does not offer the fixed newstyle handshake');
    }
    this.#noZeroes = (flags & handshakeFlag.noZeroes) !== 0;
    await this.#wire.write(uint32(flags & (handshakeFlag.fixedNewstyle | handshakeFlag.noZeroes)));
  }

  async askStructured(): Promise<boolean> {
    const answer = await this.#ask(option.structuredReply, Buffer.alloc(0));
    return answer.refused === undefined;
  }

  /** Contexts that the server does not have are simply not chosen. */
  async askContexts(names: readonly string[]): Promise<Map<string, number>> {
    const chosen = new Map<string, number>();
    if (names.length === 0) return chosen;
    const payload = Buffer.concat([
      encodeString(this.#exportName),
      uint32(names.length),
      ...names.map(encodeString),
    ]);
    const answer = await this.#ask(option.setMetaContext, payload);
    for (const reply of answer.replies) {
      if (reply.type !== optionReply.metaContext || reply.payload.length < 5) continue;
      const context = reply.payload.subarray(4).toString('utf8');
      if (names.includes(context)) chosen.set(context, reply.payload.readUInt32BE(0));
    }
    return chosen;
  }

  async go(): Promise<ExportFacts> {
    const payload = Buffer.concat([
      encodeString(this.#exportName),
      uint16(1),
      uint16(info.blockSize),
    ]);
    const answer = await this.#ask(option.go, payload);
    if (answer.refused?.type === optionReply.errorUnsupported) return this.#exportNameOnly();
    if (answer.refused !== undefined) throw this.#refusedExport(answer.refused);
    let facts: ExportFacts | undefined;
    let blockBytesMin = 1;
    let requestBytesMax: number = nbdLimits.servedBytesMax;
    for (const { type, payload: bytes } of answer.replies) {
      if (type !== optionReply.info || bytes.length < 2) continue;
      const kind = bytes.readUInt16BE(0);
      if (kind === info.export && bytes.length === 12) {
        const sizeBytes = this.#checkedSize(readOffset(bytes, 2));
        facts = { sizeBytes, flags: bytes.readUInt16BE(10), blockBytesMin, requestBytesMax };
      }
      if (kind === info.blockSize && bytes.length === 14) {
        blockBytesMin = bytes.readUInt32BE(2);
        requestBytesMax = bytes.readUInt32BE(10);
      }
    }
    if (facts === undefined) throw this.#wrong('it does not say how large its export is');
    this.#checkBlocks(blockBytesMin, requestBytesMax);
    return { ...facts, blockBytesMin, requestBytesMax };
  }

  /** "Block size constraints": powers of two up to 64 KiB. */
  #checkBlocks(least: number, most: number): void {
    const isPower = least > 0 && (least & (least - 1)) === 0;
    if (!isPower || least > 65536 || most < least) {
      throw this.#wrong(`blocks of ${least} to ${most} bytes`);
    }
  }

  /** Servers without NBD_OPT_GO close the connection when they lack the export. */
  async #exportNameOnly(): Promise<ExportFacts> {
    const name = Buffer.from(this.#exportName, 'utf8');
    await this.#wire.write(encodeOption(option.exportName, name));
    const answer = await this.#wire.take(10 + (this.#noZeroes ? 0 : 124));
    return {
      sizeBytes: this.#checkedSize(readOffset(answer, 0)),
      flags: answer.readUInt16BE(8),
      blockBytesMin: 1,
      requestBytesMax: nbdLimits.servedBytesMax,
    };
  }

  #checkedSize(sizeBytes: number): number {
    if (Number.isSafeInteger(sizeBytes)) return sizeBytes;
    throw this.#wrong(`an export of ${sizeBytes} bytes`);
  }

  async #ask(type: number, payload: Buffer): Promise<OptionAnswer> {
    await this.#wire.write(encodeOption(type, payload));
    const replies: OptionReply[] = [];
    for (;;) {
      const head = await this.#wire.take(20);
      if (head.readBigUInt64BE(0) !== magic.optionReply || head.readUInt32BE(8) !== type) {
        throw this.#wrong('it answers another question than was asked');
      }
      const length = head.readUInt32BE(16);
      // A name or sentence of the longest, and the numbers before it.
      if (length > 2 * nbdLimits.stringBytesMax) throw this.#wrong(`an answer of ${length} bytes`);
      const reply = { type: head.readUInt32BE(12), payload: await this.#wire.take(length) };
      if (reply.type === optionReply.ack) return { replies, refused: undefined };
      if (reply.type >= 2 ** 31) return { replies, refused: reply };
      replies.push(reply);
      if (replies.length > nbdLimits.optionRepliesMax) throw this.#wrong('too many answers');
    }
  }

  #refusedExport(reply: OptionReply): RouseError {
    const said = reply.payload.toString('utf8').slice(0, 200);
    const words = said === '' ? '' : ` (${said})`;
    const what = `${this.#name}: the export ${JSON.stringify(this.#exportName)}`;
    if (reply.type === optionReply.errorUnknown) {
      return new RouseError('not-found', `${what} does not exist${words}`, {
        advice: 'List the exports: qemu-nbd --list, or nbdinfo --list.',
      });
    }
    if (reply.type === optionReply.errorTlsRequired) {
      return new RouseError('unsupported-format', `${what} is served with TLS only${words}`, {
        advice: 'Serve it on a unix socket or on loopback without TLS.',
      });
    }
    if (reply.type === optionReply.errorPolicy) {
      return new RouseError('forbidden', `${what} is refused${words}`);
    }
    return new RouseError('io-error', `${what} is refused: error ${reply.type - 2 ** 31}${words}`);
  }

  #wrong(what: string): RouseError {
    return wrongServer(this.#name, what);
  }
}

interface OptionReply {
  readonly type: number;
  readonly payload: Buffer;
}

interface OptionAnswer {
  readonly replies: readonly OptionReply[];
  readonly refused: OptionReply | undefined;
}

/** The parts of NBD_OPT_GO, NBD_OPT_INFO and the context options, for the server. */
export function decodeExportName(payload: Buffer): string | undefined {
  return new FieldReader(payload).string(nbdLimits.stringBytesMax);
}

export function decodeContextQuery(
  payload: Buffer,
): { readonly exportName: string; readonly queries: readonly string[] } | undefined {
  const fields = new FieldReader(payload);
  const exportName = fields.string(nbdLimits.stringBytesMax);
  const count = fields.uint32();
  if (exportName === undefined || count === undefined) return undefined;
  if (count > nbdLimits.contextsMax) return undefined;
  const queries: string[] = [];
  for (let i = 0; i < count; i++) {
    const query = fields.string(nbdLimits.stringBytesMax);
    if (query === undefined) return undefined;
    queries.push(query);
  }
  return fields.left === 0 ? { exportName, queries } : undefined;
}
