import { createHash } from 'node:crypto';
import { RouseError } from '../errors.ts';

/**
 * What an administrator carries from the server to a new proxy: the token's id and secret, and the
 * fingerprint of the server's certificate, so that whoever sits between cannot play the server.
 * `rouse-` and base64url of: version (1 byte), id (8), secret (24), fingerprint (32), and the first
 * 4 bytes of SHA-256 of all that, which tell a typing error from a refused token.
 */
export interface TokenParts {
  /** 16 hexadecimal digits. */
  readonly id: string;
  /** 48 hexadecimal digits. */
  readonly secret: string;
  /** SHA-256 of the server's certificate, `AA:BB:…`. */
  readonly fingerprint: string;
}

export const tokenIdBytes = 8;
export const tokenSecretBytes = 24;
const version = 1;
const wholeBytes = 1 + tokenIdBytes + tokenSecretBytes + 32 + 4;

export function writeToken({ id, secret, fingerprint }: TokenParts): string {
  const print = Buffer.from(fingerprint.replaceAll(':', ''), 'hex');
  const body = Buffer.concat([
    Buffer.from([version]),
    Buffer.from(id, 'hex'),
    Buffer.from(secret, 'hex'),
    print,
  ]);
  return `rouse-${Buffer.concat([body, checksum(body)]).toString('base64url')}`;
}

/** Throws `bad-request` for what is no whole token. */
export function readToken(text: string): TokenParts {
  const coded = /^rouse-([A-Za-z0-9_-]+)$/.exec(text.trim())?.[1];
  const bytes = Buffer.from(coded ?? '', 'base64url');
  const body = bytes.subarray(0, wholeBytes - 4);
  const isPlain = bytes.toString('base64url') === coded;
  const isWhole =
    isPlain && bytes.length === wholeBytes && checksum(body).equals(bytes.subarray(-4));
  if (!isWhole || body[0] !== version) {
    throw new RouseError('bad-request', 'the token is not whole, or was mistyped', {
      advice: 'Copy it again, or print a new one on the server: rouse proxy token',
    });
  }
  const secretAt = 1 + tokenIdBytes;
  const printAt = secretAt + tokenSecretBytes;
  const pairs = body.subarray(printAt).toString('hex').toUpperCase().match(/../g) ?? [];
  return {
    id: body.subarray(1, secretAt).toString('hex'),
    secret: body.subarray(secretAt, printAt).toString('hex'),
    fingerprint: pairs.join(':'),
  };
}

function checksum(body: Uint8Array): Buffer {
  return createHash('sha256').update(body).digest().subarray(0, 4);
}

export function secretHash(secret: string): string {
  return createHash('sha256').update(Buffer.from(secret, 'hex')).digest('hex');
}
