import { BlockList, isIP } from 'node:net';

/** Textual IP addresses and prefixes, both families; whatever is no address is in no prefix. */
export type Family = 4 | 6;

export function familyOf(address: string): Family | undefined {
  const family = isIP(address);
  return family === 4 || family === 6 ? family : undefined;
}

/** `cidr`: `10.77.0.1/24`, `fd77::1/64`; a bare address is a prefix of its own. */
export function isWithin(address: string, cidr: string): boolean {
  const [network = '', length] = cidr.split('/');
  const family = familyOf(network);
  if (family === undefined || familyOf(address) !== family) return false;
  const bits = length === undefined ? (family === 4 ? 32 : 128) : Number(length);
  if (!Number.isInteger(bits) || bits < 0 || bits > (family === 4 ? 32 : 128)) return false;
  const name = family === 4 ? 'ipv4' : 'ipv6';
  const list = new BlockList();
  list.addSubnet(network, bits, name);
  return list.check(address, name);
}

export function isSameAddress(a: string, b: string): boolean {
  return isWithin(a, b);
}

/** Reached from its own machine alone. */
export function isLoopback(address: string): boolean {
  return isWithin(address, '127.0.0.0/8') || isWithin(address, '::1/128');
}

/** fe80::/10 and 169.254.0.0/16 mean something on one link alone. */
export function isLinkLocal(address: string): boolean {
  return isWithin(address, 'fe80::/10') || isWithin(address, '169.254.0.0/16');
}

/** `[fd77::1]:9443`, `10.77.0.1:9443`. */
export function hostAndPort(address: string, port: number): string {
  return familyOf(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`;
}
