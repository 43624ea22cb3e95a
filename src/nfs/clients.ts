import { BlockList, isIP, SocketAddress } from 'node:net';
import { RouseError } from '../errors.ts';

/** Addresses that may use an export: single ones and CIDR prefixes of both families. */
export class ClientList {
  /** As given, for people. */
  readonly texts: readonly string[];
  readonly #list = new BlockList();

  constructor(texts: readonly string[]) {
    this.texts = [...texts];
    for (const text of texts) this.#add(text);
  }

  allows(address: string): boolean {
    const family = isIP(address);
    if (family === 0) return false;
    return this.#list.check(address, family === 4 ? 'ipv4' : 'ipv6');
  }

  #add(text: string): void {
    const [host = '', prefixText, ...rest] = text.split('/');
    const address = normalAddress(host);
    const family = isIP(address);
    if (family === 0 || rest.length > 0) throw wrongClient(text);
    const type = family === 4 ? 'ipv4' : 'ipv6';
    if (prefixText === undefined) return this.#list.addAddress(address, type);
    const bits = family === 4 ? 32 : 128;
    // A mapped prefix counts its 96 leading bits: ::ffff:10.0.0.0/104 is 10.0.0.0/8.
    const mapped = family === 4 && isIP(host) === 6 ? 96 : 0;
    const prefix = /^\d{1,3}$/.test(prefixText) ? Number(prefixText) - mapped : -1;
    if (prefix < 0 || prefix > bits) throw wrongClient(text);
    this.#list.addSubnet(address, prefix, type);
  }
}

function wrongClient(text: string): RouseError {
  return new RouseError('bad-request', `"${text}" is no IP address and no CIDR prefix`, {
    advice: 'Give addresses such as 192.0.2.7, 2001:db8::7 or 192.0.2.0/24; no names.',
  });
}

/**
 * One spelling per address: without zone, IPv4-mapped IPv6 (RFC 4291 2.5.5.2) as IPv4, IPv6 in its
 * canonical text. What is no address comes back as it is.
 */
export function normalAddress(text: string): string {
  const zone = text.indexOf('%');
  const address = zone < 0 ? text : text.slice(0, zone);
  if (isIP(address) !== 6) return address;
  const canonical = new SocketAddress({ address, family: 'ipv6' }).address;
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(canonical);
  return mapped?.[1] ?? canonical;
}
