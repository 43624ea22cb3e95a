import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { isRouseError } from '../errors.ts';
import { readToken, secretHash, type TokenParts, writeToken } from './token.ts';

const hex = (bytes: number) =>
  fc
    .uint8Array({ minLength: bytes, maxLength: bytes })
    .map((all) => Buffer.from(all).toString('hex'));
const parts = fc.record<TokenParts>(
  {
    id: hex(8),
    secret: hex(24),
    fingerprint: hex(32).map((text) => (text.toUpperCase().match(/../g) ?? []).join(':')),
  },
  { noNullPrototype: true },
);
const refuses = (text: string) =>
  assert.throws(
    () => readToken(text),
    (error) => isRouseError(error, 'bad-request'),
  );

test('a token is read as it was written, with spaces around it', () => {
  fc.assert(
    fc.property(parts, (all) => {
      assert.deepEqual(readToken(` ${writeToken(all)}\n`), all);
    }),
  );
});

test('a token with a letter wrong, missing or added is no token', () => {
  fc.assert(
    fc.property(parts, fc.nat(91), fc.constantFrom('A', 'b', '7', '-', ''), (all, at, letter) => {
      const text = writeToken(all);
      const wrong = text.slice(0, 6 + at) + letter + text.slice(7 + at);
      if (wrong !== text) refuses(wrong);
      refuses(`${text}A`);
    }),
  );
  for (const text of ['', 'rouse-', 'rouse-AAAA', 'x']) refuses(text);
});

test('the secret is not in what is kept of it', () => {
  const secret = 'ab'.repeat(24);
  assert.equal(secretHash(secret).length, 64);
  assert.ok(!secretHash(secret).includes(secret));
});
