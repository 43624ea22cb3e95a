import assert from 'node:assert/strict';
import { NfsStatus } from './file-system.ts';
import { eachWay, MOUNT } from '../testing/nfs-conversation.ts';

/** MOUNT version 3, spoken raw. */

eachWay(
  'MOUNT: sub-directories, files, missing paths, traversal',
  async ({ memory, mount, mountStatus, lookup }) => {
    memory.put('/web01/vda-flat.vmdk', Buffer.from('disk'));
    const directory = await mount('/vault/Recover-a-1/web01');
    assert.equal((await lookup('vda-flat.vmdk', directory)).status, 0);
    assert.deepEqual(await mount('//vault/Recover-a-1//web01/'), directory);
    const status = async (path: string) => (await mountStatus(path)).status;
    assert.equal(await status('/vault/Recover-a-1/nothing'), NfsStatus.noent);
    const file = '/vault/Recover-a-1/web01/vda-flat.vmdk';
    assert.equal(await status(file), NfsStatus.notdir);
    assert.equal(await status('/vault'), NfsStatus.noent);
    assert.equal(await status('/vault/Recover-a-12'), NfsStatus.noent);
    assert.equal(await status('/vault/Recover-a-1/..'), NfsStatus.noent);
    assert.equal(await status('vault/Recover-a-1'), NfsStatus.noent);
  },
);

eachWay('MOUNT: EXPORT, DUMP, UMNT, UMNTALL', async ({ client, server, mount, memory }) => {
  memory.makeDirectory(memory.root, 'web01', {});
  const exports = await client.call(5, () => undefined, MOUNT);
  const { results } = exports;
  assert.equal(results.bool(), true);
  assert.equal(results.text(1024), '/vault/Recover-a-1');
  assert.equal(results.bool(), true);
  assert.equal(results.text(255), '127.0.0.1');
  assert.equal(results.bool(), true);
  assert.equal(results.text(255), '::1');
  assert.equal(results.bool(), false);
  assert.equal(results.bool(), false);
  results.done();
  const mounts = async () => {
    const { results } = await client.call(2, () => undefined, MOUNT);
    const list: string[] = [];
    while (results.bool()) list.push(`${results.text(255)} ${results.text(1024)}`);
    return list;
  };
  await mount('/vault/Recover-a-1/web01');
  assert.ok((await mounts()).includes('127.0.0.1 /vault/Recover-a-1/web01'));
  assert.deepEqual(server.exports()[0]?.mounted, ['127.0.0.1']);
  await client.call(3, (args) => args.text('/vault/Recover-a-1/web01/'), MOUNT);
  assert.ok(!(await mounts()).includes('127.0.0.1 /vault/Recover-a-1/web01'));
  await client.call(4, () => undefined, MOUNT);
  assert.deepEqual(await mounts(), []);
  assert.deepEqual(server.exports()[0]?.mounted, []);
  assert.equal((await client.call(6, () => undefined, MOUNT)).status, 3);
});
