import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type ErrorCode, isRouseError } from '../errors.ts';
import type { Datastore } from '../hypervisors/port.ts';
import { findDatastore, pickDatastore, refuseFull } from './target-datastore.ts';

const datastore = (name: string, more: Partial<Datastore> = {}): Datastore => ({
  id: `id-of-${name}`,
  name,
  kind: 'vmfs',
  hostIds: ['host1'],
  totalBytes: 1000,
  freeBytes: 500,
  location: '',
  ...more,
});

const backup = { kind: 'nfs', location: '192.0.2.1:/main/Recover-edge-1-k3f9x2m7qa' } as const;
const datastores = [
  datastore('production'),
  datastore('rouse-k3f9x2m7qa', backup),
  datastore('theirs', { kind: 'nfs', location: 'nas1:/vol/Recover' }),
  datastore('publication', backup),
];

function refused(code: ErrorCode, text: RegExp): (error: unknown) => boolean {
  return (error) => isRouseError(error, code) && text.test(`${error.message} → ${error.advice}`);
}

test('production is found by name and id; what shows a backup is none, however it is named', () => {
  for (const name of ['production', 'theirs']) {
    for (const wanted of [name, `id-of-${name}`]) {
      assert.equal(findDatastore(datastores, { datastore: wanted }).name, name);
      assert.equal(pickDatastore(datastores, wanted).name, name);
    }
  }
  const said = refused(
    'bad-request',
    /shows a backup, .* → Name production\. Datastores are: production, theirs\.$/,
  );
  for (const wanted of ['rouse-k3f9x2m7qa', 'publication', 'id-of-publication']) {
    assert.throws(() => findDatastore(datastores, { datastore: wanted }), said);
    assert.throws(() => pickDatastore(datastores, wanted), said);
  }
  const unknown = refused('not-found', /no datastore nope → .*: production, theirs\.$/);
  assert.throws(() => findDatastore(datastores, { datastore: 'nope' }), unknown);
});

test('of two of one name, the one that the host has is meant', () => {
  const twins = [
    datastore('ssd', { id: 'ds-1' }),
    datastore('ssd', { id: 'ds-2', hostIds: ['h2'] }),
  ];
  assert.equal(findDatastore(twins, { datastore: 'ssd' }, 'h2').id, 'ds-2');
  assert.equal(findDatastore(twins, { datastore: 'ssd' }, 'h9').id, 'ds-1');
});

test('a tenth of the size has to be free', () => {
  const store = datastore('production', { freeBytes: 100 });
  refuseFull(store, 1000);
  assert.throws(() => refuseFull(store, 1001), refused('disk-full', /100 B free.*--datastore/));
});
