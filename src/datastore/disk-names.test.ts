import assert from 'node:assert/strict';
import { test } from 'node:test';
import { clones, CloneWorld } from '../testing/clone-world.ts';
import { recordName } from './clone-record.ts';
import { createClone, openClone } from './clone.ts';
import { diskFileNames } from './disk-names.ts';

test('names that a datastore takes stay, a colon becomes a dash, and none comes twice', () => {
  assert.deepEqual(diskFileNames(['vda', 'Systemplatte 1']), ['vda', 'Systemplatte 1']);
  assert.deepEqual(diskFileNames(['scsi0:0', 'scsi0:1']), ['scsi0-0', 'scsi0-1']);
  assert.deepEqual(diskFileNames(['a:b', 'a-b', 'a*b']), ['a-b', 'a-b_1', 'a-b_2']);
});

test('a clone of vSphere disks shows no colon, and tells its disks by their own names', async () => {
  const world = new CloneWorld();
  const [first, second] = world.spec.disks;
  assert.ok(first !== undefined && second !== undefined);
  const disks = [
    { ...first, name: 'scsi0:0' },
    { ...second, name: 'scsi0:1' },
  ];
  await createClone(world.around(), clones, { ...world.spec, disks });
  const clone = await world.open();
  assert.deepEqual(
    clone.disks.map(({ name, path }) => [name, path]),
    [
      ['scsi0:0', 'web01/scsi0-0-flat.vmdk'],
      ['scsi0:1', 'web01/scsi0-1-flat.vmdk'],
    ],
  );
  assert.match((await clone.readFile('web01/scsi0-0.vmdk')).toString(), /"scsi0-0-flat\.vmdk"/);
  await clone.close();
});

test('a clone that was made before is shown as it was', async () => {
  const world = new CloneWorld();
  await (await world.make()).close();
  const path = `${clones}/${world.spec.cloneId}/${recordName}`;
  const file = await world.files.open(path, 'write');
  const bytes = Buffer.alloc(await file.size());
  await file.read(bytes, 0);
  const record = JSON.parse(bytes.toString()) as { disks: { file?: string }[] };
  for (const disk of record.disks) delete disk.file;
  const old = Buffer.from(JSON.stringify(record).padEnd(bytes.length));
  await file.write([old], 0);
  await file.close();
  const clone = await openClone(world.around(), clones, world.spec.cloneId);
  assert.deepEqual(
    clone.disks.map((disk) => disk.path),
    ['web01/vda-flat.vmdk', 'web01/vdb-flat.vmdk'],
  );
  await clone.close();
});
