import { RouseError } from '../errors.ts';
import { plainHash } from './hash.ts';

/**
 * Records people may read, and machines can trust: `{"checksum":"<BLAKE3 hex>","body":<JSON>}` and a
 * line feed. The checksum is over the exact bytes of the body.
 */
const head = '{"checksum":"';
const middle = '","body":';
const tail = '}\n';
const hashLength = 64;

export function sealJson(body: unknown): Buffer {
  const text = JSON.stringify(body);
  return Buffer.from(head + plainHash(text) + middle + text + tail);
}

/** The body, unchecked against any shape; `corrupt-data` when it is not what was sealed. */
export function openJson(bytes: Buffer, where: string): unknown {
  const text = bytes.toString('utf8');
  const bodyAt = head.length + hashLength + middle.length;
  const framed =
    text.startsWith(head) &&
    text.startsWith(middle, head.length + hashLength) &&
    text.endsWith(tail);
  if (!framed) throw damaged(where, 'it is not a sealed record');
  const body = text.slice(bodyAt, -tail.length);
  if (plainHash(body) !== text.slice(head.length, head.length + hashLength))
    throw damaged(where, 'its checksum is wrong');
  try {
    return JSON.parse(body);
  } catch (error) {
    throw new RouseError('corrupt-data', `${where} is damaged: it is not JSON`, { cause: error });
  }
}

/** The body without looking at the checksum, to read a version number; undefined: no JSON. */
export function peekJson(bytes: Buffer): unknown {
  try {
    const whole: unknown = JSON.parse(bytes.toString('utf8'));
    return isObject(whole) ? whole['body'] : undefined;
  } catch {
    return undefined;
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function damaged(where: string, what: string): RouseError {
  return new RouseError('corrupt-data', `${where} is damaged: ${what}`);
}
