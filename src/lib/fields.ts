import { isIP } from 'node:net';
import { z } from 'zod';

/**
 * The fields that requests of several features share, with messages in a person's words. A message
 * says what the value must be; src/api/problems.ts puts the field's name and the value before it.
 */

/** An array that nobody changes afterwards: what views are made of. */
export function list<T extends z.ZodType>(item: T): z.ZodReadonly<z.ZodArray<T>> {
  return z.array(item).readonly();
}

/** An id or a name of something that exists. */
export const reference = z
  .string('must be a name or an id, as text')
  .min(1, 'must not be empty')
  .max(255, 'must be at most 255 characters long');

/** A name that we give: it becomes a libvirt name, a folder on a datastore, a part of a path. */
export const newName = z
  .string('must be text')
  .min(1, 'must not be empty')
  .max(128, 'must be at most 128 characters long')
  // oxlint-disable-next-line no-control-regex -- control characters are what is refused
  .regex(/^[^/\\\u0000-\u001f\u007f]+$/u, 'must hold neither slashes nor control characters')
  .refine((name) => name.trim() === name, 'must not begin or end with a space')
  .refine((name) => name !== '.' && name !== '..', 'must be a name, not a directory');

/** A path on the server's machine. */
export const absolutePath = z
  .string('must be a path, as text')
  .max(4095, 'must be at most 4095 bytes long')
  .regex(/^\/[^\0]*$/u, 'must be an absolute path, beginning with /');

export const flag = z.boolean('must be true or false');

/** A point in time: milliseconds since the epoch, or ISO 8601 with an offset or Z. */
export const instant = z.union(
  [z.int().min(0), z.iso.datetime({ offset: true }).transform((text) => Date.parse(text))],
  'must be milliseconds since 1970, or a time such as 2026-11-22T22:00:00Z',
);

const addressAdvice = 'must be an IPv4 or IPv6 address, or a prefix such as 192.0.2.0/24';

/** Whom an export answers: an address, or a prefix. */
export const clientAddress = z.string(addressAdvice).refine(isAddressOrPrefix, addressAdvice);

export function isAddressOrPrefix(text: string): boolean {
  const match = /^([^/]+)(?:\/(\d{1,3}))?$/.exec(text);
  if (match?.[1] === undefined) return false;
  const family = isIP(match[1]);
  if (family === 0) return false;
  return match[2] === undefined || Number(match[2]) <= (family === 4 ? 32 : 128);
}

/** A count of bytes that a JSON number holds exactly: up to 8 PiB. */
export const bytes = z.number();
export const timeMs = z.number().describe('Milliseconds since 1970, UTC.');

/** What went wrong with something that ran on its own, as a part of its view. */
export const failure = z.object({
  code: z.string(),
  message: z.string(),
  advice: z.string(),
});
export type Failure = z.infer<typeof failure>;

export const named = z.object({ id: z.string(), name: z.string() });

z.globalRegistry.add(failure, { id: 'Failure' });
