import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import type { z } from 'zod';
import { backupRequest } from '../backup/schema.ts';
import { exportView, inventory, mtree, proxyStatus } from '../catalog/schema.ts';
import { rescanReport, testReport, vaultStats, verifyReport } from '../catalog/schema.ts';
import { RouseError } from '../errors.ts';
import type { Inventory, TestReport } from '../hypervisors/port.ts';
import { isAddressOrPrefix } from '../lib/fields.ts';
import type { ExportView, ProxyStatus } from '../proxy/port.ts';
import { recoveryRequest, relocateRequest, renewRequest } from '../recovery/schema.ts';
import type { Mtree, RescanReport, VaultStats, VerifyReport } from '../vault/api.ts';
import { check } from './problems.ts';

/** Compiles only while the documented shape and the room's own type are the same. */
type Same<A, B> = [A, B] extends [B, A] ? true : never;
const same: [
  Same<z.infer<typeof vaultStats>, VaultStats>,
  Same<z.infer<typeof verifyReport>, VerifyReport>,
  Same<z.infer<typeof rescanReport>, RescanReport>,
  Same<z.infer<typeof testReport>, TestReport>,
  Same<z.infer<typeof inventory>, Inventory>,
  Same<z.infer<typeof proxyStatus>, ProxyStatus>,
  Same<z.infer<typeof mtree>, Mtree>,
  Same<Omit<z.infer<typeof exportView>, 'recovery' | 'proxy'>, ExportView>,
] = [true, true, true, true, true, true, true, true];

test('the documented shapes are those of the rooms', () => {
  assert.equal(same.length, 8);
});

test('times may be milliseconds or ISO 8601', () => {
  const at = (value: unknown) => recoveryRequest.parse({ machine: 'a', at: value }).at;
  assert.equal(at(5), 5);
  assert.equal(at('1970-01-01T00:00:00Z'), 0);
  assert.equal(at('1970-01-01T01:00:00+01:00'), 0);
  for (const wrong of ['yesterday', '1970-01-01', -1, 1.5, null, {}]) {
    assert.throws(() => at(wrong), JSON.stringify(wrong));
  }
});

test('leases end in the future, within a year', () => {
  const lease = (value: unknown) => renewRequest.safeParse({ leaseMs: value }).success;
  assert.ok(lease(1) && lease(365 * 86_400_000));
  for (const wrong of [0, -1, 366 * 86_400_000, 1.5, '5d', Number.NaN, Infinity]) {
    assert.equal(lease(wrong), false, String(wrong));
  }
});

test('clients are addresses or prefixes', () => {
  for (const good of ['192.0.2.7', '::1', '2001:db8::/32', '0.0.0.0/0', 'fe80::1']) {
    assert.ok(isAddressOrPrefix(good), good);
  }
  for (const wrong of ['', 'localhost', '192.0.2.7/33', '::/129', '1.2.3.4/', '1.2.3', '*']) {
    assert.equal(isAddressOrPrefix(wrong), false, wrong);
  }
});

test('any JSON gives a request or a refusal in words', () => {
  const schemas = [recoveryRequest, backupRequest, relocateRequest];
  fc.assert(
    fc.property(fc.constantFrom(...schemas), fc.jsonValue(), (schema, value) => {
      try {
        check(schema, value, 'request');
      } catch (error) {
        assert.ok(error instanceof RouseError, String(error));
        assert.equal(error.code, 'bad-request');
        assert.ok(error.message.length > 0 && error.message.length < 1_000, error.message);
        assert.doesNotMatch(error.message, /undefined|\[object|Invalid input/);
      }
    }),
  );
  const keys = ['machine', 'saveset', 'mode', 'at', 'clients', 'files', 'leaseMs', 'name'];
  const near = fc.dictionary(fc.constantFrom(...keys), fc.jsonValue());
  fc.assert(
    fc.property(fc.constantFrom(...schemas), near, (schema, value) => {
      try {
        check(schema, value, 'request');
      } catch (error) {
        assert.ok(error instanceof RouseError, String(error));
        assert.doesNotMatch(error.message, /undefined|\[object|Invalid input/);
      }
    }),
  );
});
