import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isLinkLocal } from '../lib/addresses.ts';
import { ownNetworks, tryToReach } from './reach.ts';

test('an address where nobody listens still answers', async () => {
  assert.equal(await tryToReach('127.0.0.1'), 'answers');
});

test('own networks are addresses with prefixes, and none of one link alone', () => {
  const networks = ownNetworks();
  assert.ok(networks.includes('127.0.0.1/8'));
  assert.deepEqual(
    networks.filter((cidr) => isLinkLocal(cidr.split('/')[0] ?? '')),
    [],
  );
});
