//! Floors of this machine: what no design can go below.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use anyhow::Result;

/// One TCP round trip on loopback and one durable append of 10 KB, in ms a sample.
pub(crate) fn durable_round_trip(samples: usize) -> Result<Vec<f64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut peer, _) = listener.accept()?;
        peer.set_nodelay(true)?;
        let mut buffer = [0u8; 200];
        while peer.read_exact(&mut buffer).is_ok() {
            peer.write_all(&buffer)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let folder = crate::results::folder();
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("floor.tmp");
    let mut file = std::fs::File::create(&path)?;
    let record = vec![7u8; 10 * 1024];
    let mut buffer = [0u8; 200];
    let mut taken = Vec::with_capacity(samples);
    for _ in 0..samples {
        let start = Instant::now();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        file.write_all(&record)?;
        file.sync_data()?;
        taken.push(start.elapsed().as_secs_f64() * 1_000.0);
    }
    drop(stream);
    echo.join()
        .map_err(|_| anyhow::anyhow!("echo thread panicked"))??;
    std::fs::remove_file(path)?;
    Ok(taken)
}
