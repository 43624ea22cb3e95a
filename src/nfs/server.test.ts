import assert from 'node:assert/strict';
import { systemClock } from '../lib/clock.ts';
import { MemoryFileSystem, lateFileSystem } from '../testing/memory-file-system.ts';
import { encodeCall, RpcClient } from '../testing/nfs-client.ts';
import { NfsStatus } from './file-system.ts';
import { Procedure } from './nfs3/types.ts';
import type { XdrWriter } from './xdr.ts';
import {
  directoryName,
  eachWay,
  EXPORT_SECRET,
  fattr,
  MOUNT,
  noChange,
  words,
} from '../testing/nfs-conversation.ts';

/** RPC replies, handles, exports and their clients, repeated calls, counters. */

eachWay('RPC: null, unknown procedure, program and version', async ({ client }) => {
  const empty = () => undefined;
  assert.equal((await client.call(0, empty)).status, 0);
  assert.equal((await client.call(22, empty)).status, 3);
  assert.equal((await client.call(0, empty, { program: 100_227 })).status, 1);
  const mismatch = await client.call(0, empty, { version: 4 });
  assert.equal(mismatch.status, 2);
  assert.deepEqual([mismatch.results.u32(), mismatch.results.u32()], [3, 3]);
  const mountMismatch = await client.call(0, empty, { program: 100_005, version: 1 });
  assert.equal(mountMismatch.status, 2);
});

eachWay(
  'RPC: another RPC version, unknown and broken credentials are denied',
  async ({ client }) => {
    const empty = () => undefined;
    const version = await client.call(0, empty, { rpcVersion: 3 });
    assert.equal(version.denied, true);
    assert.deepEqual([version.status, version.results.u32(), version.results.u32()], [0, 2, 2]);
    const flavor = await client.call(0, empty, { credential: words(6, 0) });
    assert.deepEqual([flavor.denied, flavor.status, flavor.results.u32()], [true, 1, 2]);
    const broken = await client.call(0, empty, { credential: words(1, 4, 0) });
    assert.deepEqual([broken.denied, broken.status, broken.results.u32()], [true, 1, 1]);
    const many = words(1, 4 * 22, 0, 0, 0, 0, 17, ...Array.from({ length: 17 }, () => 0));
    const groups = await client.call(0, empty, { credential: many });
    assert.deepEqual([groups.denied, groups.status, groups.results.u32()], [true, 1, 1]);
  },
);

eachWay('RPC: arguments that are too short or too long are garbage', async ({ client, root }) => {
  const short = await client.call(Procedure.read, (args) => args.opaque(root));
  assert.equal(short.status, 4);
  const long = await client.call(Procedure.getattr, (args) => {
    args.opaque(root);
    args.u32(0);
  });
  assert.equal(long.status, 4);
  const huge = await client.call(Procedure.getattr, (args) => args.u32(0xffff_fff0));
  assert.equal(huge.status, 4);
});

eachWay('RPC: AUTH_NONE is let in as nobody', async ({ client, root }) => {
  const credential = words(0, 0);
  const reply = await client.call(
    Procedure.access,
    (args) => {
      args.opaque(root);
      args.u32(0x3f);
    },
    { credential },
  );
  assert.equal(reply.results.u32(), 0);
  assert.equal(reply.results.u32(), 1);
  fattr(reply.results);
  assert.equal(reply.results.u32() & 0x04, 0);
});

eachWay(
  'RPC: any split of records and fragments gives the same replies',
  async ({ client, root }) => {
    for (const fragmentBytes of [1, 3, 7, 64]) {
      const reply = await client.call(Procedure.getattr, (args) => args.opaque(root), {
        fragmentBytes,
      });
      assert.equal(reply.results.u32(), 0);
    }
    const xids = Array.from({ length: 40 }, () => client.freshXid());
    const replies = xids.map((xid) => client.replyTo(xid));
    const bytes = Buffer.concat(
      xids.map((xid) => encodeCall(xid, Procedure.getattr, (args) => args.opaque(root))),
    );
    for (let at = 0; at < bytes.length; at += 113) {
      client.socket.write(bytes.subarray(at, at + 113));
      if (at % 5 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    for (const reply of await Promise.all(replies)) assert.equal(reply.results.u32(), 0);
  },
);

eachWay(
  'handles: foreign, changed, of an old generation, of another export',
  async ({ memory, nfs, create }) => {
    const file = await create('handled');
    const status = async (handle: Buffer) =>
      (await nfs(Procedure.getattr, (args) => args.opaque(handle))).status;
    assert.equal(await status(file), 0);
    for (let at = 8; at < file.length; at++) {
      const changed = Buffer.from(file);
      changed[at] = (changed[at] ?? 0) ^ 1;
      assert.equal(await status(changed), NfsStatus.badhandle);
    }
    assert.equal(await status(file.subarray(0, 32)), NfsStatus.badhandle);
    assert.equal(await status(Buffer.alloc(64)), NfsStatus.badhandle);
    assert.equal(await status(Buffer.alloc(0)), NfsStatus.badhandle);
    const elsewhere = Buffer.from(file);
    elsewhere.writeUInt32BE(99, 4);
    assert.equal(await status(elsewhere), NfsStatus.stale);
    memory.renew(memory.lookup(1, 'handled'));
    assert.equal(await status(file), NfsStatus.stale);
  },
);

eachWay(
  'a removed export: its handles are stale; handles outlive a server',
  async ({ server, root, late, mount, mountStatus, nfs, getattr }) => {
    const other = new MemoryFileSystem({ clock: systemClock, fsid: 2n });
    const fileSystem = late ? lateFileSystem(other) : other;
    const definition = {
      id: 8,
      path: '/b',
      secret: EXPORT_SECRET,
      clients: ['127.0.0.1'],
      fileSystem,
    };
    server.addExport(definition);
    assert.throws(() => server.addExport(definition), { code: 'already-exists' });
    const handle = await mount('/b');
    const cross = await nfs(Procedure.rename, (args) => {
      directoryName(args, handle, 'x');
      directoryName(args, root, 'y');
    });
    assert.equal(cross.status, NfsStatus.xdev);
    assert.deepEqual(server.exports()[1]?.connected, ['127.0.0.1']);
    assert.equal(await server.removeExport('/b/'), true);
    assert.equal(await server.removeExport('/b'), false);
    const gone = await nfs(Procedure.getattr, (args) => args.opaque(handle));
    assert.equal(gone.status, NfsStatus.stale);
    assert.equal((await mountStatus('/b')).status, NfsStatus.noent);
    server.addExport(definition);
    assert.equal((await getattr(handle)).type, 2);
    await server.removeExport('/b');
  },
);

eachWay(
  'an address that is no client is refused on every call, both families',
  async ({ server, mountStatus, nfs }) => {
    const other = new MemoryFileSystem({ clock: systemClock });
    const definition = {
      id: 9,
      path: '/six',
      secret: EXPORT_SECRET,
      clients: ['::1'],
      fileSystem: other,
    };
    server.addExport(definition);
    assert.equal((await mountStatus('/six')).status, NfsStatus.acces);
    const six = await RpcClient.open(server.nfsPort, '::1');
    const reply = await six.call(1, (args) => args.text('/six'), MOUNT);
    assert.equal(reply.results.u32(), 0);
    const stolen = Buffer.from(reply.results.opaque(64));
    const good = await six.call(Procedure.getattr, (args) => args.opaque(stolen));
    assert.equal(good.results.u32(), 0);
    for (const procedure of [1, 4, 5, 6, 7, 18, 19, 20, 21]) {
      const { status } = await nfs(procedure, (args) => {
        args.opaque(stolen);
        if (procedure === 4) args.u32(0x3f);
        if (procedure === 6 || procedure === 21) args.fixed(Buffer.alloc(12));
        if (procedure === 7) args.fixed(Buffer.alloc(20));
      });
      assert.equal(status, NfsStatus.acces, `procedure ${procedure}`);
    }
    assert.equal(server.exports().find((one) => one.path === '/six')?.refused, 10);
    await six.close();
    await server.removeExport('/six');
  },
);

eachWay(
  'a repeated call runs once and gets the same reply, over a reconnect too',
  async ({ client, server, memory, root }) => {
    const args = (writer: XdrWriter) => {
      directoryName(writer, root, 'once');
      writer.u32(1);
      noChange(writer);
    };
    const runsBefore = memory.calls.get('create') ?? 0;
    const xid = 0x7fff_0001;
    const [first, second] = await Promise.all([
      client.call(Procedure.create, args, { xid }),
      client.call(Procedure.create, args, { xid }),
    ]);
    assert.equal(first.results.u32(), 0);
    assert.deepEqual(first.bytes, second.bytes);
    const other = await RpcClient.open(server.nfsPort);
    const third = await other.call(Procedure.create, args, { xid });
    assert.deepEqual(third.bytes, first.bytes);
    assert.equal(memory.calls.get('create'), runsBefore + 1);
    const fresh = await other.call(Procedure.create, args);
    assert.equal(fresh.results.u32(), NfsStatus.exist);
    await other.close();
  },
);

eachWay(
  'a call whose connection dies runs, and its reply waits for the repetition',
  async ({ client, server, root }) => {
    const args = (writer: XdrWriter) => {
      directoryName(writer, root, 'orphan');
      noChange(writer);
    };
    const dying = await RpcClient.open(server.nfsPort);
    const xid = 0x7fff_0002;
    const lost = dying.call(Procedure.mkdir, args, { xid }).catch(() => undefined);
    dying.socket.end();
    await lost;
    await dying.close();
    const again = await client.call(Procedure.mkdir, args, { xid });
    assert.equal(again.results.u32(), 0);
  },
);

eachWay('what was done is counted', async ({ server, create, getattr, write, read }) => {
  const file = await create('counted');
  const counters = () => server.exports()[0];
  const start = counters();
  await write(file, 0, Buffer.alloc(100));
  await read(file, 0, 50);
  await getattr(file);
  const end = counters();
  assert.ok(start !== undefined && end !== undefined);
  assert.equal(end.writes - start.writes, 1);
  assert.equal(end.writtenBytes - start.writtenBytes, 100);
  assert.equal(end.reads - start.reads, 1);
  assert.equal(end.readBytes - start.readBytes, 50);
  assert.equal(end.others - start.others, 1);
  assert.equal(end.inFlightCalls, 0);
  assert.ok((end.lastUsedMs ?? 0) > 0);
  const reads = end.readLatency.counts.reduce((sum, count) => sum + count, 0);
  assert.equal(reads, end.reads);
});
