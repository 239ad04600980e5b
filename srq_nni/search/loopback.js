// Preloaded into NNI's manager, whose web portal has no password: every port it opens is on the loopback interface.
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
    const first = args[0];
    if (first !== null && typeof first === 'object' && first.port !== undefined) {
        args[0] = { ...first, host: '127.0.0.1' };
    } else if (typeof first === 'number' || (typeof first === 'string' && /^\d+$/.test(first))) {
        args.splice(1, typeof args[1] === 'string' ? 1 : 0, '127.0.0.1');
    }
    return listen.apply(this, args);
};
