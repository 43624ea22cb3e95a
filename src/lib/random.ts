import { randomBytes, randomUUID } from 'node:crypto';

/** Randomness and fresh ids, passed in so that a seed can replace them. */
export interface Random {
  bytes(length: number): Buffer;
  /** A short, lower-case, speakable id such as `k3f9x2m7qa` (50 bits). */
  id(): string;
  /** RFC 9562 version 4. */
  uuid(): string;
}

const alphabet = 'abcdefghjkmnpqrstuvwxyz023456789';

export function idFromBytes(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => alphabet[byte & 31]).join('');
}

export const systemRandom: Random = {
  bytes: (length) => randomBytes(length),
  id: () => idFromBytes(randomBytes(10)),
  uuid: () => randomUUID(),
};
